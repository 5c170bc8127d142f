"""Scores ranked lists against what users chose next. Knows no model."""
