"""The library as a distribution of its own: the tree that is built, with no other library than it names."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

PROGRAM = """
import sys

OTHERS = (
    "nnunet_topomae nnunetv2 batchgenerators batchgeneratorsv2 acvl_utils dynamic_network_architectures SimpleITK "
    "blosc2 cripser gudhi ot timm safetensors scipy skimage matplotlib"
)
for name in OTHERS.split():
    sys.modules[name] = None  # its import fails, and it is not found

import torch
import topological_loss_3d as topology

assert all(getattr(topology, name) for name in topology.__all__)
volume, made = torch.rand(2, 1, 1, 12, 11, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
made.requires_grad_()
topology.TopologicalLoss(threads=2)(made, volume).backward()
assert made.grad.abs().sum() > 0
for decimals in (1, 16):  # with many copies of points, and without
    rounded = [values[0, 0].detach().round(decimals=decimals) for values in (volume, made)]
    first, second = (topology.persistence_diagrams(values)[1] for values in rounded)
    matching = topology.wasserstein_matching(first, second)
    assert abs(topology.verify(matching)) < 1e-12
    print(repr(topology.wasserstein_distance(first, second)))
"""


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


@pytest.mark.slow
def test_it_runs_with_torch_numba_and_numpy_only(tmp_path: Path) -> None:
    from nnunet_topomae.topology import persistence_diagrams, wasserstein_distance

    environment = {**os.environ, "PYTHONPATH": str(_collect(tmp_path / "tree"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    import torch

    pair = torch.rand(2, 12, 11, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for line, decimals in zip(done.stdout.split(), (1, 16), strict=True):
        first, second = (persistence_diagrams(volume.round(decimals=decimals))[1] for volume in pair)
        assert float(line) == pytest.approx(wasserstein_distance(first, second), rel=1e-10)
