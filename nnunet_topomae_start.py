"""What `import torch` calls: starts the hook of nnunet-topomae, and survives a damaged installation of it.

A module of its own, because torch fails to import when the function that it is told to call cannot be loaded. Standard
library only.
"""

import sys
from contextlib import suppress


def install() -> None:
    """Start the hook (nnunet_topomae/_hook.py). Never raises."""
    try:
        from nnunet_topomae._hook import install as install_hook

        install_hook()
    except Exception as error:
        with suppress(Exception):  # pythonw and daemons have no standard error, or a closed one
            sys.stderr.write(
                f"nnunet-topomae: damaged installation ({type(error).__name__}: {error}), nnU-Net will not find its "
                "trainers. Install it again: pip install --force-reinstall --no-deps nnunet-topomae\n"
            )
