"""Writes the source tree of the distribution `topological-loss-3d`: the topological loss alone, without nnU-Net.

    python packaging/topology/collect.py build/topology
    python -m build build/topology

The files are those of `nnunet_topomae/topology` and the two that they import, under a name of their own, so that both
distributions can be installed together.
"""

import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAME = "topological_loss_3d"
SHARED = ("types", "geometry")


def collect(target: Path) -> Path:
    """Write the tree.

    Args:
        target: folder that does not exist yet.

    Returns:
        The folder of the package in it.
    """
    source, package = ROOT / "nnunet_topomae", target / "src" / NAME
    shutil.copytree(source / "topology", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*(f"{module}.py" for module in SHARED), "py.typed"):
        shutil.copyfile(source / name, package / name)
    for file in package.rglob("*.py"):
        text = file.read_text(encoding="utf-8").replace("nnunet_topomae.topology", NAME)
        file.write_text(re.sub(rf"\bnnunet_topomae\.({'|'.join(SHARED)})\b", rf"{NAME}.\1", text), encoding="utf-8")
    version = re.search(r'__version__ = "(.+)"', (source / "__init__.py").read_text(encoding="utf-8"))
    assert version is not None
    project = (HERE / "pyproject.toml").read_text(encoding="utf-8")
    (target / "pyproject.toml").write_text(project.replace("0.0.0", version[1], 1), encoding="utf-8")
    shutil.copyfile(HERE / "README.md", target / "README.md")
    shutil.copyfile(ROOT / "LICENSE", target / "LICENSE")
    return package


if __name__ == "__main__":
    collect(Path(sys.argv[1]))
