"""Data sets: the embedded phantoms."""
