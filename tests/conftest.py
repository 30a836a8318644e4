"""Fixtures for all tests, and how the tests are shared out among processes.

Imports neither torch nor the package, so that a single file of tests starts fast.
"""

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import cache_from_source
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TEST_DATA_VARIABLE = "TOPOMAE_TEST_DATA"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

# Read when nnunetv2 is imported, here and in child processes.
os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("nnUNet_n_proc_DA", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

MOST_WORKERS = 4  # each of them needs up to 3 GB of memory
# Fixtures that take long to make, or of which a machine can have only one. Their tests run in one process.
SHARED_FIXTURES = ("slurm", "finished_demo", "finished", "workspace", "wheel", "written", "tiny_volumes")


def _compiled_file(path: str, debug_override: bool | None = None, *, optimization: Any = None) -> str:
    """Where Python keeps the compiled form of a source file.

    jaxtyping gives the files of everything that is imported while a module of ours is loading names of its own, so all
    of torch would be compiled again. Only our own modules have other code.
    """
    ours = "nnunet_topomae" in path or path.startswith(str(REPOSITORY))
    return cache_from_source(path, debug_override, optimization=optimization if ours else None)


if hook := sys.modules.get("jaxtyping._import_hook"):
    hook.cache_from_source = _compiled_file  # type: ignore[attr-defined]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process for two processors, or per processor for slow tests, which often wait; none of its own for files.

    Two processors are often threads of one core: twice the processes then cost 40 % more time of processors.
    """
    if all(".py" in argument for argument in config.args):
        return 0
    fast = "not slow" in config.getoption("markexpr", "")
    workers = min((os.cpu_count() or 1) // (2 if fast else 1), MOST_WORKERS)
    return workers if workers > 1 else 0


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests of a shared fixture together, and start the modules first whose tests may take longest."""
    patience: dict[Path, float] = {}
    for item in items:
        shared = next((name for name in SHARED_FIXTURES if name in getattr(item, "fixturenames", ())), None)
        if shared is not None:
            item.add_marker(pytest.mark.xdist_group(shared))
        limit = item.get_closest_marker("timeout")
        patience[item.path] = max(patience.get(item.path, 0.0), limit.args[0] if limit else 0.0)
    items.sort(key=lambda item: -patience[item.path])


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


@pytest.fixture(scope="session")
def tiny_plans() -> Callable[..., dict[str, Any]]:
    """Makes new plans as nnU-Net writes them, with a U-Net of four tiny stages: tiny_plans(dataset, **changes).

    Their only configuration is 3d_fullres, without a section of ours. The changes replace values of it.
    """

    def make(dataset: str, **changes: Any) -> dict[str, Any]:
        arguments = {
            "n_stages": 4,
            "features_per_stage": [4, 6, 8, 10],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 4,
            "strides": [[1, 1, 1], *[[2, 2, 2]] * 3],
            "n_conv_per_stage": [1] * 4,
            "n_conv_per_stage_decoder": [1] * 3,
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
        configuration = {
            "data_identifier": "Plans_3d_fullres",
            "preprocessor_name": "DefaultPreprocessor",
            "patch_size": [16, 24, 32],
            "batch_size": 2,
            "batch_dice": False,
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": {},
            "spacing": [2.0, 1.0, 1.0],
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": arguments,
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
        }
        return {
            "dataset_name": dataset,
            "plans_name": "Plans",
            "image_reader_writer": "SimpleITKIO",
            "label_manager": "LabelManager",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "foreground_intensity_properties_per_channel": {},
            "configurations": {"3d_fullres": {**configuration, **changes}},
            "continue_training": False,
        }

    return make


@pytest.fixture
def light_nnunet(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's own functions at little cost.

    Its process pools become thread pools, which need not import torch again; ours stay as they are. A fingerprint draws
    a thousand voxels per case, not its share of a hundred million.
    """
    from multiprocessing.pool import ThreadPool

    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    collect = DatasetFingerprintExtractor.collect_foreground_intensities
    monkeypatch.setattr("multiprocessing.get_context", lambda method: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr("nnunetv2.utilities.utils.Pool", ThreadPool)  # twelve processes that list a folder
    monkeypatch.setattr(
        DatasetFingerprintExtractor,
        "collect_foreground_intensities",
        lambda segmentation, images, num_samples: collect(segmentation, images, num_samples=1000),
    )


@pytest.fixture
def uncounted_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers that do not count the operations of their network, which takes twice as long as building it."""
    from nnunet_topomae.architectures.summary import Cost, count_parameters
    from nnunet_topomae.trainers import planned

    monkeypatch.setattr(planned, "measure_cost", lambda network, *_: Cost(count_parameters(network), 0))


@pytest.fixture
def test_data() -> Callable[[str], Path]:
    """Finds a folder of optional real data by name, or skips the test with the reason."""

    def find(name: str) -> Path:
        root = Path(os.environ.get(TEST_DATA_VARIABLE, REPOSITORY.parent / "shared" / "data"))
        if not (root / name).exists():
            pytest.skip(f"no real data {name} in {root}; set {TEST_DATA_VARIABLE} to the folder that holds it")
        return root / name

    return find


@pytest.fixture
def find_browser() -> Callable[[], str]:
    """Finds the program of a browser, or skips the rest of a test with the reason."""

    def find() -> str:
        browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
        if browser is None:
            pytest.skip(f"the page was not opened: none of {', '.join(BROWSERS)} is installed")
        return browser

    return find


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source tree."""
    return REPOSITORY
