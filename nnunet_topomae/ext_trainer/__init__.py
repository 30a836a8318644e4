"""Folder for nnU-Net's ``nnUNet_extTrainer``, for those who turn the start-up hook off (docs/installation.md)."""
