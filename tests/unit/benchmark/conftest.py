"""A finished demo made up from random numbers, and benchmarks on stand-ins for nnU-Net's commands."""

import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from nnunet_topomae.benchmark.jobs import make_jobs
from nnunet_topomae.benchmark.layout import FUSION, MODELS, SCRATCH, DemoFolders, DemoSettings
from nnunet_topomae.benchmark.results import collect_results, write_scores
from nnunet_topomae.benchmark.spec import read_spec
from nnunet_topomae.benchmark.steps import StepRecord
from nnunet_topomae.benchmark.store import JobFolder
from nnunet_topomae.datasets.phantom import write_phantom_dataset
from nnunet_topomae.geometry import CropLocation
from nnunet_topomae.nnunet.names import PRETRAINER
from nnunet_topomae.training.previews import Preview

TERMS = ("total", "mse_vit", "topo_vit", "spa_vit", "mse_unetrpp", "topo_unetrpp", "spa_unetrpp")
TERMS += ("spa_consis", "rec_consis")


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture
def find_browser():
    """The program of a browser; skips the rest of a test where there is none."""

    def find():
        browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
        if browser is None:
            pytest.skip(f"the page was not opened: none of {', '.join(BROWSERS)} is installed")
        return browser

    return find


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


BENCHMARK = """
datasets = [5]
recipes = ["unetrpp", "nnunet", "full"]
folds = [0, 1, 2, 3, 4]
seeds = [0, 1]
device = "cpu"
[settings.pretraining]
epochs = 2
[settings.finetuning]
epochs = 3
"""


class Bench:
    """A benchmark's folder, and the command line in an environment with the stand-ins."""

    def __init__(self, root):
        self.root, self.file = root, root / "bench.toml"
        self.raw = root / "raw" / "Dataset005_Test"
        make_raw(self.raw)
        self.file.write_text(BENCHMARK)
        self.bin = root / "bin"
        self.bin.mkdir()
        # nnU-Net's commands are looked for beside the running Python.
        (self.bin / "python").symlink_to(os.path.realpath(sys.executable))
        (root / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
        packages = root / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages.mkdir(parents=True)
        (packages / "site-packages").symlink_to(sysconfig.get_path("purelib"))
        source = (Path(__file__).parent / "fake_nnunet.py").read_text()
        shutil.copyfile(Path(__file__).parent / "fake_nnunet.py", self.bin / "fake_nnunet.py")
        for name in ("extract_fingerprint", "plan_experiment", "preprocess", "train"):
            script = self.bin / f"nnUNetv2_{name}"
            script.write_text(f"#!{sys.executable}\n{source}")
            script.chmod(script.stat().st_mode | stat.S_IEXEC)
        torch.save({"network_weights": {"w": torch.zeros(3, 4)}}, self.bin / "checkpoint.pth")
        self.behave()

    def behave(self, **behaviour):
        (self.bin / "behaviour.json").write_text(json.dumps(behaviour))

    @property
    def environment(self):
        return {**os.environ, "nnUNet_raw": str(self.raw.parent)}

    def argv(self, action, *arguments):
        return [
            str(self.bin / "python"), "-m", "nnunet_topomae.cli", "benchmark", action, "-b", str(self.file), *arguments
        ]  # fmt: skip

    def call(self, action, *arguments, code=0):
        done = subprocess.run(
            self.argv(action, *arguments), env=self.environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, action, *arguments):
        return subprocess.Popen(
            self.argv(action, *arguments),
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def spec(self):
        return read_spec(self.file)

    @property
    def jobs(self):
        return make_jobs(self.spec, self.raw.parent)

    def folder(self, name):
        return JobFolder.of(next(job for job in self.jobs if job.name == name), self.spec)

    def done(self):
        """Time at which each done job was finished."""
        folders = {job.name: JobFolder.of(job, self.spec) for job in self.jobs}
        return {name: folder.done()["finished"] for name, folder in folders.items() if folder.done()}

    def starts(self, name):
        (file,) = (path for path in self.folder(name).path.rglob("starts.txt") if not path.parents[1].is_symlink())
        return file.read_text().split()

    def limit(self, **replacements):
        text = self.file.read_text()
        for key, value in replacements.items():
            text = "\n".join(f"{key} = {value}" if line.startswith(f"{key} =") else line for line in text.splitlines())
        self.file.write_text(text + "\n")

    @staticmethod
    def wait_for(condition, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)

    @staticmethod
    def processes(folder):
        """Numbers of all processes of the job in a folder."""
        token = f"NNUNET_TOPOMAE_JOB={folder}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if token in (process / "environ").read_bytes().split(b"\0"):
                    found.append(process.name)
            except OSError:
                continue
        return found


def make_raw(folder):
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(10):
        label = np.zeros((6, 10, 12), np.uint8)
        label[1:4, 2:6, 2:7] = 1
        label[2:5, 6:9, 3:8] = 2
        image = SimpleITK.GetImageFromArray(label)
        image.SetSpacing((1.0, 1.0, 2.0))
        SimpleITK.WriteImage(image, folder / f"labelsTr/case_{number}.nii.gz")
        SimpleITK.WriteImage(image, folder / f"imagesTr/case_{number}_0000.nii.gz")
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "numTraining": 10,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


@pytest.fixture(scope="session")
def make_bench():
    """The class, for fixtures of another scope."""
    return Bench


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture
def small(bench):
    """One recipe with pre-training, one fold, one seed."""
    bench.limit(recipes='["full"]', folds="[0]", seeds="[0]")
    return bench
