"""nnU-Net's names, folders, files and plans."""
