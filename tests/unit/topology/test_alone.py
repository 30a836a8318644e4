"""The library as a distribution of its own: the tree that is built; `test_the_topological_loss_alone` installs it."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def _collect(target: Path) -> Path:
    script = ROOT / "packaging" / "topology" / "collect.py"
    subprocess.run([sys.executable, str(script), str(target)], check=True)
    return target / "src"


def test_the_tree_names_no_other_package(tmp_path: Path) -> None:
    source = _collect(tmp_path / "tree")
    files = list(source.rglob("*.py"))
    assert len(files) > 20
    assert not [file.name for file in files if "nnunet_topomae" in file.read_text()]
    project = tomllib.loads((tmp_path / "tree" / "pyproject.toml").read_text())["project"]
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = [*ours["dependencies"], *ours["optional-dependencies"]["gudhi"]]
    extras = [need for needs in project["optional-dependencies"].values() for need in needs]
    assert set(project["dependencies"] + extras) <= set(allowed)
