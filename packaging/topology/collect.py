"""Writes the source tree of the distribution `topological-loss-3d`: the topological loss alone, without nnU-Net.

    python packaging/topology/collect.py build/topology [VERSION]
    python -m build build/topology

The files are those of `nnunet_topomae/topology` and the two that they import, under a name of their own, so that both
distributions can be installed together. The default version is that of a copy without git (pyproject.toml).
"""

import re
import shutil
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAME = "topological_loss_3d"
SHARED = ("types", "geometry")


def collect(target: Path, version: str | None = None) -> Path:
    """Write the tree.

    Args:
        target: folder that does not exist yet.
        version: of the distribution.

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
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    version = version or ours["tool"]["setuptools_scm"]["fallback_version"]
    project = (HERE / "pyproject.toml").read_text(encoding="utf-8").replace("0.0.0", version, 1)
    urls = "".join(f'{name} = "{address}"\n' for name, address in ours["project"]["urls"].items())
    (target / "pyproject.toml").write_text(f"{project}\n[project.urls]\n{urls}", encoding="utf-8")
    shutil.copyfile(HERE / "README.md", target / "README.md")
    shutil.copyfile(ROOT / "LICENSE", target / "LICENSE")
    return package


if __name__ == "__main__":
    collect(Path(sys.argv[1]), *sys.argv[2:3])
