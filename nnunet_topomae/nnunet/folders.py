"""nnU-Net's folders. Standard library only."""

import os
from pathlib import Path


def nnunet_folder(name: str) -> Path:
    """One of nnU-Net's folders.

    Args:
        name: the environment variable, for example ``nnUNet_raw``.

    Raises:
        ValueError: the variable is not set.
    """
    if not os.environ.get(name):
        raise ValueError(f"{name} is not set; set it as for nnU-Net's own commands")
    return Path(os.environ[name])
