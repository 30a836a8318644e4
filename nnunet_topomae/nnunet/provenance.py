"""On which machine and with which versions a result was made."""

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "nnunet-topomae", "nnunetv2", "torch", "numpy", "scipy", "scikit-image", "SimpleITK", "batchgeneratorsv2",
    "dynamic-network-architectures", "timm", "cripser", "POT", "numba",
)  # fmt: skip


def describe_versions() -> dict[str, str]:
    """Version of Python and of every package that can change a number; absent ones are left out."""
    versions = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def describe_commit(checkout: Path | None = None) -> str | None:
    """Commit of the code, with a plus sign where files had changed; None where it is not known.

    Args:
        checkout: its folder; by default that of the package that runs. A package that was built from a checkout and
            installed without it tells the commit by its version.
    """
    import nnunet_topomae

    root = checkout or Path(nnunet_topomae.__file__).parents[1]
    if not (root / ".git").exists():
        return None if checkout else commit_of_version(nnunet_topomae.__version__)
    commit, changed = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else f"{commit}+" if changed else commit


def commit_of_version(version: str) -> str | None:
    """The abbreviated commit in the version of a package that was built from a checkout; None for a release.

    Args:
        version: such as `0.1.1.dev500+g37b41cace`, with a date at its end where files had changed.

    Example:
        >>> commit_of_version("0.1.1.dev500+g37b41cace.d20261123"), commit_of_version("0.1.1")
        ('37b41cace+', None)
    """
    found = re.search(r"\+g([0-9a-f]+)(\.d\d+)?$", version)
    return None if found is None else found[1] + ("+" if found[2] else "")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def describe_machine(gpu: bool = True) -> dict[str, str]:
    """Operating system, processor, memory and GPU.

    Args:
        gpu: look for one, which imports torch.
    """
    machine = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
    }
    if sys.platform == "linux":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        machine["memory"] = f"{memory / 2**30:.0f} GiB"
    if gpu:
        import torch

        if torch.cuda.is_available():
            machine["GPU"] = torch.cuda.get_device_name()
    return machine


def _processor() -> str:
    """Model of the processor; Python alone does not know it on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"
