"""Vectors in, rows out: nearest-neighbour search behind one Protocol."""
