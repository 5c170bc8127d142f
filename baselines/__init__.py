"""Classic recommenders to stand beside ours in every report."""
