"""A finished demo made up from random numbers, in the layout that the real one leaves."""

import json

import numpy as np
import pytest
import SimpleITK

from nnunet_topomae.benchmark.layout import FUSION, MODELS, PRETRAINER, SCRATCH, DemoFolders, DemoSettings
from nnunet_topomae.benchmark.results import collect_results, write_scores
from nnunet_topomae.benchmark.steps import StepRecord
from nnunet_topomae.datasets.phantom import write_phantom_dataset
from nnunet_topomae.geometry import CropLocation
from nnunet_topomae.training.previews import Preview

TERMS = ("total", "mse_vit", "topo_vit", "spa_vit", "mse_unetrpp", "topo_unetrpp", "spa_unetrpp")
TERMS += ("spa_consis", "rec_consis")


def make_preview(case, rng):
    volume = rng.standard_normal((8, 12, 16)).astype(np.float32)
    hidden = rng.random(volume.shape) < 0.5
    crop = CropLocation((2, 3, 4), (10, 15, 20), (20, 30, 40))
    points = crop.key_points()
    noise = rng.standard_normal((2, *volume.shape)).astype(np.float32)
    return Preview(
        case, volume, volume, hidden, noise[0], noise[1], (3.0, 1.5, 1.5), crop, points, points / 2, points / 3
    )


def write_epochs(folder, names):
    folder.mkdir(parents=True)
    values = [
        {
            "epoch": e,
            "seconds": 1.0,
            "learning_rate": 1e-3,
            "train": {n: 1 / (e + i + 1) for i, n in enumerate(names) if n != "pseudo_dice"},
            "validation": {n: 1 / (e + i + 2) for i, n in enumerate(names)},
        }
        for e in range(4)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(v) + "\n" for v in values))


@pytest.fixture(scope="session")
def finished_demo(tmp_path_factory):
    """Folder of a demo whose fusion model is perfect and whose other model misses the vessel; tests only read it."""
    out = tmp_path_factory.mktemp("finished") / "demo"
    folders, settings = DemoFolders(out), DemoSettings(cases_train=5, cases_test=2)
    raw = write_phantom_dataset(folders.raw, 777, 5, 2, seed=0)
    for model in MODELS:
        folders.prediction(model).mkdir(parents=True)
    for file in (raw / "labelsTs").iterdir():
        truth = SimpleITK.ReadImage(file)
        SimpleITK.WriteImage(truth, folders.prediction("fusion") / file.name)
        SimpleITK.WriteImage(truth * (truth != 4), folders.prediction("scratch") / file.name)
    write_epochs(folders.fold(PRETRAINER), TERMS)
    for trainer in (FUSION, SCRATCH):
        write_epochs(folders.fold(trainer), ("loss", "pseudo_dice"))
    rng = np.random.default_rng(0)
    validation = folders.fold(PRETRAINER) / "validation"
    for case in ("phantom_000", "phantom_003"):
        make_preview(case, rng).save(validation / "previews")
    branch = {"mse": 0.4, "psnr": float("inf"), "ssim": float("nan"), "key_point_error_mm": 12.5}
    (validation / "summary.json").write_text(
        json.dumps({"reconstruction": {"mean": {"vit": branch, "unetrpp": branch}, "cases": {}}})
    )
    write_scores(folders)
    records = [StepRecord("pretrain", "Pre-train", 90.0, "nnUNetv2_train 777 <&>", skipped=False)]
    results = collect_results(folders, settings, "cpu", records)
    (out / "results.json").write_text(json.dumps(results, allow_nan=False))
    return out
