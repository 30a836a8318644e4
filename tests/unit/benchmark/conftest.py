"""A finished demo made up from random numbers."""

import json

import numpy as np
import pytest
import SimpleITK

from nnunet_topomae.benchmark.jobs import make_jobs
from nnunet_topomae.benchmark.spec import read_spec
from nnunet_topomae.benchmark.stages import Task, score
from nnunet_topomae.benchmark.store import JobFolder
from nnunet_topomae.commands.demo import DATASET_ID, SEED, write_benchmark
from nnunet_topomae.datasets.phantom import write_phantom_dataset
from nnunet_topomae.geometry import CropLocation
from nnunet_topomae.training.previews import Preview
from nnunet_topomae.training.record import add_facts

TERMS = ("total", "mse_vit", "topo_vit", "spa_vit", "mse_partner", "topo_partner", "spa_partner")
TERMS += ("spa_consis", "rec_consis")
FACTS = {
    "pretrain": {"parameters": 7, "macs": 9e9, "steps": 100, "crops_per_step": 2, "peak_gpu_bytes": 3e9},
    "train": {"parameters": 1_500_000, "macs": 2.5e9, "steps": 40, "crops_per_step": 3, "peak_gpu_bytes": 2e9},
}


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


def write_pretraining(folder):
    write_epochs(folder, TERMS)
    rng = np.random.default_rng(0)
    for case in ("phantom_000", "phantom_003"):
        make_preview(case, rng).save(folder / "validation" / "previews")
    branch = {"mse": 0.4, "psnr": float("inf"), "ssim": float("nan"), "key_point_error_mm": 12.5}
    (folder / "validation" / "summary.json").write_text(
        json.dumps({"reconstruction": {"mean": {"vit": branch, "unetrpp": branch}, "cases": {}}})
    )


def write_predictions(folder, truth, perfect):
    """The truth, or the truth without its vessel."""
    folder.mkdir(parents=True)
    for file in truth.iterdir():
        label_map = SimpleITK.ReadImage(file)
        SimpleITK.WriteImage(label_map if perfect else label_map * (label_map != 4), folder / file.name)


def finish(job, spec):
    """Do a job without nnU-Net."""
    folder, outputs = JobFolder.of(job, spec), []
    raw = spec.raw_folder() / job.dataset
    folder.path.mkdir(parents=True)
    if job.kind == "plan":
        folder.dataset.mkdir(parents=True)
        (folder.dataset / "dataset.json").write_bytes((raw / "dataset.json").read_bytes())
    elif job.kind == "pretrain":
        write_pretraining(folder.fold)
    elif job.kind == "train":
        write_epochs(folder.fold, ("loss", "pseudo_dice"))
    elif job.kind == "predict":
        write_predictions(folder.predictions, raw / "labelsTs", perfect=job.recipe == "full")
    else:
        outputs = score(Task(job, spec, lambda *_: None))
    if job.kind in FACTS:
        add_facts(folder.fold, FACTS[job.kind])
    commands = [f"nnUNetv2_{job.kind} {spec.out}/nnUNet_raw '<&>'"]
    made = {"versions": {"torch": "9.9"}, "commit": None, "machine": {"processor": "a quick one", "cores": "64"}}
    made |= {"primary": spec.stated, "planned": spec.planned}
    cost = {"seconds": 18.0, "cpu_seconds": 30.0, "peak_process_bytes": 1e9}
    folder.finish(outputs, {**cost, "commands": commands, "provenance": made})


@pytest.fixture(scope="session")
def finished_demo(tmp_path_factory):
    """File of a demo whose fusion model is perfect and whose other model misses the vessel; tests only read it."""
    out = tmp_path_factory.mktemp("finished") / "demo"
    out.mkdir()
    file = write_benchmark(out, "cpu")
    write_phantom_dataset(out / "nnUNet_raw", DATASET_ID, 5, 2, SEED)
    spec = read_spec(file)
    for job in make_jobs(spec):
        finish(job, spec)
    return file
