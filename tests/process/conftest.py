"""Benchmarks on stand-ins for nnU-Net's commands."""

import json
import os
import subprocess
import sys
import sysconfig
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_topomae.benchmark.jobs import make_jobs
from nnunet_topomae.benchmark.spec import read_spec
from nnunet_topomae.benchmark.store import JobFolder

# The supervisors compute nothing with torch, and importing it takes most of their time.
TORCH = """
class Tensor: ...
class cuda:
    is_available = staticmethod(lambda: False)
"""
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
        self.stubs = root / "stubs"
        self.stubs.mkdir()
        (self.stubs / "torch.py").write_text(TORCH)
        source = (Path(__file__).parent / "fake_nnunet.py").read_text()
        for name in ("plan_and_preprocess", "train", "predict"):
            script = self.bin / f"nnUNetv2_{name}"
            script.write_text(f"#!{sys.executable}\n{source}")
            script.chmod(0o755)
        with zipfile.ZipFile(self.bin / "checkpoint.pth", "w") as archive:
            archive.writestr("data.pkl", "x" * 1000)
        self.behave()

    def behave(self, **behaviour):
        (self.bin / "behaviour.json").write_text(json.dumps(behaviour))

    @property
    def environment(self):
        return {**os.environ, "nnUNet_raw": str(self.raw.parent), "PYTHONPATH": str(self.stubs)}

    def argv(self, action, *arguments):
        return [*self.program, "benchmark", action, "-b", str(self.file), *arguments]

    @property
    def program(self):
        return [str(self.bin / "python"), "-m", "nnunet_topomae.cli"]

    def call(self, action, *arguments, code=0):
        return self.call_argv(self.argv(action, *arguments), code)

    def call_argv(self, argv, code=0):
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, action, *arguments):
        return self.start_argv(self.argv(action, *arguments))

    def start_argv(self, argv):
        return subprocess.Popen(
            argv,
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
        return make_jobs(replace(self.spec, raw=self.raw.parent))

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
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / name).mkdir(parents=True)
    cases = [*((number, "Tr") for number in range(10)), *((number, "Ts") for number in range(10, 13))]
    for number, part in cases:
        label = np.zeros((6, 10, 12), np.uint8)
        label[1:4, 2:6, 2:7] = 1
        label[2:5, 6:9, 3:8] = 2
        image = SimpleITK.GetImageFromArray(label)
        image.SetSpacing((1.0, 1.0, 2.0))
        SimpleITK.WriteImage(image, folder / f"labels{part}/case_{number}.nii.gz")
        SimpleITK.WriteImage(image, folder / f"images{part}/case_{number}_0000.nii.gz")
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "numTraining": 10,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A benchmark that was run to its end and reported; tests only read it."""
    bench = Bench(tmp_path_factory.mktemp("finished"))
    bench.limit(recipes='["unetrpp", "nnunet"]', folds="[0]")
    bench.file.write_text(bench.file.read_text() + '[paper]\n5 = "synapse"\n')
    assert "all done" in bench.call("run", "--slots", "2")
    bench.reported = [Path(line) for line in bench.call("report").splitlines() if line.startswith("/")]
    return bench


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture
def small(bench):
    """One recipe with pre-training, one fold, one seed."""
    bench.limit(recipes='["full"]', folds="[0]", seeds="[0]")
    return bench
