"""nnU-Net trainers, importable as ``nnunet_topomae.trainers``."""
