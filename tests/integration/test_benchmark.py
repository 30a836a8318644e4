"""A benchmark with nnU-Net's real commands on a small real data set."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = """
datasets = [904]
recipes = ["nnunet", "full"]
folds = [0]
seeds = [0]
label_fractions = [0.5]
device = "cpu"
[settings]
patch_size = [24, 32, 24]
[settings.architecture]
vit = "tiny"
dims = [8, 16, 32, 64]
depth = 1
[settings.topology]
region_size = 24
[settings.pretraining]
epochs = 1
iterations_per_epoch = 2
validation_iterations = 1
[settings.finetuning]
epochs = 1
iterations_per_epoch = 2
validation_iterations = 1
mirror_axes = []
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_benchmark_of_real_trainings(test_data: Any, tmp_path: Path) -> None:
    source = test_data("Dataset904_HippocampusMini")
    raw = tmp_path / "raw" / source.name
    description = json.loads((source / "dataset.json").read_text())
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (source / "labelsTr").glob("*.nii.gz"))[:10]
    for part, suffix in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (raw / part).mkdir(parents=True)
        for case in cases:
            shutil.copyfile(source / part / f"{case}{suffix}", raw / part / f"{case}{suffix}")
    (raw / "dataset.json").write_text(json.dumps({**description, "numTraining": len(cases)}))
    file = tmp_path / "small.toml"
    file.write_text(FILE)
    limits = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1"}
    environment = {**os.environ, **limits, "nnUNet_raw": str(tmp_path / "raw")}

    def benchmark(*arguments: str) -> str:
        argv = [sys.executable, "-m", "nnunet_topomae.cli", "benchmark", *arguments, "-b", str(file)]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        logs = "".join(path.read_text()[-3000:] for path in (tmp_path / "small").rglob("log.txt"))
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs if 'failed' in done.stdout else ''}"
        return done.stdout

    benchmark("run")
    assert "7 jobs, 7 done" in benchmark("status")
    benchmark("report")
    results = json.loads((tmp_path / "small" / "report" / "results.json").read_text())
    (half,) = results["tables"]
    assert half["fraction"] == 0.5 and len(half["cases"]) == 2
    assert set(half["rows"]) == {"nnunet", "full"}
    assert all(row["macs"] > 1e8 for row in half["rows"].values())
    assert all("too few patients" in one["verdict"] for one in half["contrasts"])
    # nnU-Net's own mean of the same validation is ours.
    runs = tmp_path / "small" / "runs"
    (summary,) = runs.glob(
        "*__labels0.5__train/*/nnUNet_results/*/TopoMAEFusionTrainer__*/fold_0/validation/summary.json"
    )
    expected = json.loads(summary.read_text())["foreground_mean"]["Dice"]
    assert half["rows"]["full"]["mean"]["dice"] == pytest.approx(expected, abs=1e-9)
    logs = {path.parents[1].name: path.read_text() for path in runs.glob("*/*/log.txt")}
    trained_on = [name for name, log in logs.items() if "training on 4 of 8 labelled cases" in log]
    assert len(trained_on) == 2
    pretraining = next(log for name, log in logs.items() if name.endswith("pretrain"))
    assert "pre-training reads 8 training cases" in pretraining
