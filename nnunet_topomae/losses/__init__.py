"""The terms of the pre-training loss, one file each, and their weighted sum (paper Sec. II-C)."""
