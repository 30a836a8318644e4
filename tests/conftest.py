"""Fixtures for all tests. Imports neither torch nor the package: jaxtyping instruments them first."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TEST_DATA_VARIABLE = "TOPOMAE_TEST_DATA"

# Read when nnunetv2 is imported, here and in child processes.
os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("nnUNet_n_proc_DA", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


class NnunetFolders(NamedTuple):
    """nnU-Net's three folders, empty, and set in the environment."""

    raw: Path
    preprocessed: Path
    results: Path


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors compute fastest, and reproducibly, on one thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def nnunet_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NnunetFolders:
    """Fresh nnU-Net folders; nnU-Net reads the environment whenever it uses a folder."""
    folders = NnunetFolders(*(tmp_path / f"nnUNet_{name}" for name in NnunetFolders._fields))
    for folder in folders:
        folder.mkdir()
        monkeypatch.setenv(folder.name, str(folder))
    return folders


@pytest.fixture
def light_nnunet(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's own functions at little cost.

    Its process pools become thread pools, which need not import torch again; ours stay as they are. A fingerprint draws
    a thousand voxels per case, not its share of a hundred million.
    """
    from multiprocessing.pool import ThreadPool
    from types import SimpleNamespace

    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    collect = DatasetFingerprintExtractor.collect_foreground_intensities
    monkeypatch.setattr("multiprocessing.get_context", lambda method: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr(
        DatasetFingerprintExtractor,
        "collect_foreground_intensities",
        lambda segmentation, images, num_samples: collect(segmentation, images, num_samples=1000),
    )


@pytest.fixture
def test_data() -> Callable[[str], Path]:
    """Finds a folder of optional real data by name, or skips the test with the reason."""

    def find(name: str) -> Path:
        root = Path(os.environ.get(TEST_DATA_VARIABLE, REPOSITORY.parent / "shared" / "data"))
        if not (root / name).exists():
            pytest.skip(f"no real data {name} in {root}; set {TEST_DATA_VARIABLE} to the folder that holds it")
        return root / name

    return find


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source tree."""
    return REPOSITORY
