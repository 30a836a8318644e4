"""The whole main job on small real data sets, through nnU-Net's own commands, on stock plans and on ours.

A third of their time would go into importing nnU-Net, so most tests run the functions behind the commands, each in a
fresh process that is forked from one which has imported it. One test runs the installed programs.
"""

import importlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

CASES = {"Dataset132_SunnybrookCavity": 10}  # all of it: the plan depends on them
FEW_CASES = 5
# Smaller in training than planned, to save time.
PATCHES = {
    ("Dataset132_SunnybrookCavity", "TopoMAEPlans"): [12, 128, 128],
    ("Dataset904_HippocampusMini", "nnUNetResEncUNetMPlans"): [24, 32, 24],
}
PLANNERS = {
    "nnUNetPlans": "ExperimentPlanner",
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "TopoMAEPlans": "TopoMAEPlanner",
}
SHORT: dict[str, dict[str, Any]] = {
    "architecture": {"vit": "tiny", "dims": [8, 16, 32, 64], "depth": 1, "feature_size": 4},
    "pretraining": {"epochs": 2, "iterations_per_epoch": 1, "validation_iterations": 1, "seed": 0},
    "topology": {"warmup_epochs": 0, "region_size": 24},
    "finetuning": {"epochs": 2, "iterations_per_epoch": 1, "validation_iterations": 1, "seed": 0, "mirror_axes": []},
}


PRELOADED = [
    "nnunetv2.run.run_training",
    "nnunetv2.inference.predict_from_raw_data",
    "nnunet_topomae.trainers.pretrainer",
]
CallCommand = Callable[[list[str], dict[str, str], Path], int | None]


@pytest.fixture(scope="session")
def fork() -> Iterator[CallCommand]:
    """Runs a command in a process forked from one that has imported nnU-Net and the trainers; returns its code."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        target = importlib.import_module("forked_command").call

        def run(*arguments: Any) -> int | None:
            child = server.Process(target=target, args=arguments)
            child.start()
            child.join()
            return child.exitcode

        yield run


def start(argv: list[str], environment: dict[str, str], log: Path) -> int:
    """Run the installed program; returns its code."""
    argv = [str(Path(sys.executable).parent / argv[0]), *argv[1:]]
    with log.open("w") as file:
        return subprocess.run(argv, env={**os.environ, **environment}, stdout=file, stderr=file, check=False).returncode


class Workspace:
    """nnU-Net's three folders below a temporary one, and its commands.

    Args:
        root: the folder.
        call: runs a command with variables set, writes its output to a file, and returns its code.
    """

    def __init__(self, root: Path, call: CallCommand) -> None:
        self.call = call
        self.log = root / "log.txt"
        self.folders = {name: root / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        for folder in self.folders.values():
            folder.mkdir(parents=True)

    def run(self, command: str, *arguments: str) -> str:
        limits = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        environment = limits | {name: str(folder) for name, folder in self.folders.items()}
        code = self.call([command, *arguments], environment, self.log)
        output = self.log.read_text()
        assert code == 0, f"{command} {' '.join(arguments)}\n{output[-4000:]}"
        return output

    def take(self, source: Path) -> list[str]:
        """Copy a few cases of a data set, one of them also as an image to predict, and return them."""
        target = self.folders["nnUNet_raw"] / source.name
        description = json.loads((source / "dataset.json").read_text())
        ending = description["file_ending"]
        cases = sorted(path.name[: -len(ending)] for path in (source / "labelsTr").glob(f"*{ending}"))[
            : CASES.get(source.name, FEW_CASES)
        ]
        for folder in ("imagesTr", "labelsTr", "imagesTs"):
            (target / folder).mkdir(parents=True)
        for case in cases:
            shutil.copyfile(source / "labelsTr" / f"{case}{ending}", target / "labelsTr" / f"{case}{ending}")
            for image in (source / "imagesTr").glob(f"{case}_[0-9][0-9][0-9][0-9]{ending}"):
                for folder in ("imagesTr", "imagesTs") if case == cases[-1] else ("imagesTr",):
                    shutil.copyfile(image, target / folder / image.name)
        description["numTraining"] = len(cases)
        (target / "dataset.json").write_text(json.dumps(description))
        return cases

    def shorten(self, dataset: str, plans: str) -> str:
        """Write a variant of the plans with a short schedule."""
        folder = self.folders["nnUNet_preprocessed"] / dataset
        values = json.loads((folder / f"{plans}.json").read_text())
        values["plans_name"] = f"{plans}_short"
        configuration = values["configurations"]["3d_fullres"]
        configuration["topomae"] = SHORT
        configuration["patch_size"] = PATCHES.get((dataset, plans), configuration["patch_size"])
        (folder / f"{plans}_short.json").write_text(json.dumps(values))
        return f"{plans}_short"


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("dataset", "channels", "patch", "plans"),
    [
        ("Dataset904_HippocampusMini", 1, None, "nnUNetResEncUNetMPlans"),
        ("Dataset132_SunnybrookCavity", 1, [12, 256, 256], "TopoMAEPlans"),
        ("Dataset123_STSPETCT", 2, None, "nnUNetPlans"),
    ],
)
def test_pretrain_fuse_validate_predict_export(
    test_data: Any,
    fork: CallCommand,
    tmp_path: Path,
    dataset: str,
    channels: int,
    patch: list[int] | None,
    plans: str,
) -> None:
    work = Workspace(tmp_path, start if plans == "nnUNetPlans" else fork)
    cases = work.take(test_data(dataset))
    number = dataset[7:10]
    planning = ["-d", number, "-c", "3d_fullres", "-npfp", "1", "-np", "1", "-pl", PLANNERS[plans]]
    planning += ["-gpu_memory_target", "10"]  # two crops of 12x256x256 need 9.2 GB by our estimate
    if plans == "TopoMAEPlans":  # once per data set
        planning.append("--verify_dataset_integrity")
    work.run("nnUNetv2_plan_and_preprocess", *planning)
    configuration = json.loads((work.folders["nnUNet_preprocessed"] / dataset / f"{plans}.json").read_text())
    configuration = configuration["configurations"]["3d_fullres"]
    assert patch is None or configuration["patch_size"] == patch
    short = work.shorten(dataset, plans)

    for trainer in ("TopoMAEPretrainer", "TopoMAEFusionTrainer"):
        log = work.run("nnUNetv2_train", number, "3d_fullres", "0", "-tr", trainer, "-p", short, "-device", "cpu")
    assert "weights matched" in log
    results = work.folders["nnUNet_results"] / dataset
    pretraining = results / f"TopoMAEPretrainer__{short}__3d_fullres" / "fold_0"
    splits = json.loads((work.folders["nnUNet_preprocessed"] / dataset / "splits_final.json").read_text())
    summary = json.loads((pretraining / "validation" / "summary.json").read_text())["reconstruction"]
    assert sorted(summary["cases"]) == sorted(splits[0]["train"])
    assert all(np.isfinite(value) for branch in summary["mean"].values() for value in branch.values())
    assert len(list((pretraining / "validation" / "previews").glob("*.png"))) == 4
    epochs = [json.loads(line) for line in (pretraining / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [0, 1]
    assert all(np.isfinite(list(epoch["train"].values())).all() and len(epoch["train"]) == 9 for epoch in epochs)

    fusion = ["-tr", "TopoMAEFusionTrainer", "-p", short, "-c", "3d_fullres", "-d", number]
    images = work.folders["nnUNet_raw"] / dataset / "imagesTs"
    predicted = tmp_path / "predicted"
    work.run(
        "nnUNetv2_predict", *fusion, "-f", "0", "-i", str(images), "-o", str(predicted), "-device", "cpu",
        "--disable_tta", "-npp", "1", "-nps", "1",
    )  # fmt: skip
    (segmentation,) = predicted.glob("*.nii.gz")
    image = sitk.ReadImage(str(images / f"{segmentation.name[:-7]}_0000.nii.gz"))
    assert sitk.ReadImage(str(segmentation)).GetSize() == image.GetSize()
    assert len(list(images.iterdir())) == channels and len(cases) == CASES.get(dataset, FEW_CASES)

    if plans == "nnUNetPlans":  # the rest is done with the other plans of the same data
        return
    log = work.run(
        "nnUNetv2_find_best_configuration", number, "-p", short, "-c", "3d_fullres", "-tr", "TopoMAEFusionTrainer",
        "-f", "0", "-np", "1", "--disable_ensembling",
    )  # fmt: skip
    assert f"TopoMAEFusionTrainer__{short}__3d_fullres" in log
    work.run("nnUNetv2_export_model_to_zip", *fusion, "-f", "0", "-o", str(tmp_path / "model.zip"))
    shutil.rmtree(results)
    work.run("nnUNetv2_install_pretrained_model_from_zip", str(tmp_path / "model.zip"))
    restored = results / f"TopoMAEFusionTrainer__{short}__3d_fullres" / "fold_0" / "checkpoint_final.pth"
    assert restored.is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_unlabelled_scans_of_validation_patients_stay_out(test_data: Any, fork: CallCommand, tmp_path: Path) -> None:
    import torch

    dataset, unlabelled = "Dataset132_SunnybrookCavity", test_data("unlabeled_cine_sunnybrook")
    source = test_data(dataset)
    work = Workspace(tmp_path, fork)
    work.take(source)
    raw = work.folders["nnUNet_raw"] / dataset
    shutil.copytree(unlabelled, raw / "imagesUn", ignore=lambda _, names: [n for n in names if "_0000" not in n])
    shutil.copyfile(source / "splits_final.patient_grouped.json", raw / "splits_final.json")
    planning = ["-d", "132", "-c", "3d_fullres", "-npfp", "1", "-np", "1", "-pl", "TopoMAEPlanner"]
    work.run("nnUNetv2_plan_and_preprocess", *planning)
    short = work.shorten(dataset, "TopoMAEPlans")
    plan = ["plan", "-d", "132", "-p", short, "-c", "3d_fullres", "--name", "grouped"]
    work.run("nnunet-topomae", *plan, "--set", "pretraining.patients=^([^_]+)_", "pretraining.epochs=1")
    work.run("nnunet-topomae", "preprocess-unlabeled", "-d", "132", "-p", "grouped")
    log = work.run(
        "nnUNetv2_train", "132", "3d_fullres", "0", "-tr", "TopoMAEPretrainer", "-p", "grouped", "-device", "cpu"
    )
    assert "pre-training reads 8 training cases and 16 unlabelled images" in log
    fold = work.folders["nnUNet_results"] / dataset / "TopoMAEPretrainer__grouped__3d_fullres" / "fold_0"
    manifest = torch.load(fold / "checkpoint_final.pth", weights_only=False)["topomae"]["manifest"]
    splits = json.loads((work.folders["nnUNet_preprocessed"] / dataset / "splits_final.json").read_text())
    assert {case.split("_")[0] for case in splits[0]["val"]} == {"SCHFI1"}
    read = [*manifest["cases"], *manifest["unlabeled"]]
    assert len(read) == 24
    assert "SCHFI1" not in {case.split("_")[0] for case in read}
    report = work.run("nnunet-topomae", "doctor", "--checkpoint", str(fold / "checkpoint_final.pth"))
    assert "all 16 recorded cases are unchanged" in report


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pre_training_on_hippocampus_is_fine_tuned_on_the_heart(
    test_data: Any, fork: CallCommand, tmp_path: Path
) -> None:
    source, target = "Dataset904_HippocampusMini", "Dataset132_SunnybrookCavity"
    work = Workspace(tmp_path, fork)
    plans = {}
    for dataset in (source, target):
        work.take(test_data(dataset))
        planning = ["-d", dataset[7:10], "-c", "3d_fullres", "-npfp", "1", "-np", "1", "-pl", "TopoMAEPlanner"]
        work.run("nnUNetv2_plan_and_preprocess", *planning)
        plans[dataset] = work.shorten(dataset, "TopoMAEPlans")
    training = ["3d_fullres", "0", "-device", "cpu", "-tr"]
    work.run("nnUNetv2_train", "904", *training, "TopoMAEPretrainer", "-p", plans[source])
    model = f"TopoMAEPretrainer__{plans[source]}__3d_fullres"
    checkpoint = work.folders["nnUNet_results"] / source / model / "fold_0" / "checkpoint_final.pth"
    settings = [f"finetuning.pretrained={checkpoint}", "finetuning.transfer=resample"]
    settings.append("finetuning.allow_other_dataset=true")
    variant = ["plan", "-d", "132", "-p", plans[target], "-c", "3d_fullres", "--name", "from904", "--set", *settings]
    work.run("nnunet-topomae", *variant)
    log = work.run("nnUNetv2_train", "132", *training, "TopoMAEFusionTrainer", "-p", "from904")
    assert "of them resampled" in log
    assert f"pre-trained on {source}, another data set" in log
    fold = work.folders["nnUNet_results"] / target / "TopoMAEFusionTrainer__from904__3d_fullres" / "fold_0"
    assert (fold / "validation" / "summary.json").is_file()
    became = json.loads((fold / "transfer.json").read_text())["weights"]
    fresh = {name.split(".")[0] for name, what in became.items() if what == "fresh"}
    assert "vit_encoder" not in fresh
    assert sum(what.startswith("resampled") for what in became.values()) > 5
