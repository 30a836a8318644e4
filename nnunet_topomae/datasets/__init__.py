"""Data sets: the embedded phantoms, and converters from downloads to nnU-Net's format."""
