"""Topology- and spatiality-aware masked pre-training for nnU-Net v2 (arXiv 2406.10519).

This file imports nothing heavy: it is loaded by the start-up hook of every Python process that imports torch.
"""

from importlib.metadata import version

__version__ = version("nnunet-topomae")
