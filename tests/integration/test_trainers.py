"""The trainers inside nnU-Net, in one process, on tiny data with regions, an ignore label and a constant image."""

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from typing import Any, NamedTuple

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_topomae.nnunet.process import find_program

pytestmark = pytest.mark.slow

DATASET = "Dataset901_Tiny"
SHAPE = (20, 36, 28)
SECTION: dict[str, Any] = {
    "architecture": {"vit": "tiny", "dims": [8, 8, 16, 16], "depth": 1},
    "pretraining": {
        "epochs": 2,
        "iterations_per_epoch": 2,
        "validation_iterations": 1,
        "preview_every": 1,
        "seed": 1,
    },
    "topology": {"warmup_epochs": 0, "region_size": 12},
    "finetuning": {"epochs": 2, "iterations_per_epoch": 1, "validation_iterations": 1, "seed": 1},
}


def _write_case(folder: Path, number: int) -> None:
    rng = np.random.default_rng(number)
    labels = np.zeros(SHAPE, np.uint8)
    z, y, x = (int(rng.integers(2, size // 2)) for size in SHAPE)
    labels[z : z + 8, y : y + 14, x : x + 12] = 1
    labels[z + 2 : z + 6, y + 4 : y + 10, x + 3 : x + 9] = 2
    labels[:2] = 3  # not annotated
    image = labels.astype(np.float32) + 0.3 * rng.normal(size=SHAPE)
    if number == 0:
        image = np.full(SHAPE, 7.0)  # a scan that failed
    for values, name in ((image.astype(np.float32), f"imagesTr/c{number}_0000"), (labels, f"labelsTr/c{number}")):
        written = sitk.GetImageFromArray(values)
        written.SetSpacing((1.0, 1.0, 2.0))
        sitk.WriteImage(written, str(folder / f"{name}.nii.gz"))


@pytest.fixture(scope="module", autouse=True)
def _forked_pools() -> Iterator[None]:
    """nnU-Net's pools fork: starting fresh Pythons would take most of the time."""
    get_context = multiprocessing.get_context
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda method=None: get_context("fork"))
        yield


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """nnU-Net folders with the planned and preprocessed data set."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir()
            patch.setenv(f"nnUNet_{name}", str(root / name))
        raw = root / "raw" / DATASET
        for name in ("imagesTr", "labelsTr"):
            (raw / name).mkdir(parents=True)
        for number in range(6):
            _write_case(raw, number)
        description = {
            "channel_names": {"0": "MR"},
            "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
            "regions_class_order": [1, 2],
            "numTraining": 6,
            "file_ending": ".nii.gz",
        }
        (raw / "dataset.json").write_text(json.dumps(description))
        from nnunetv2.experiment_planning.plan_and_preprocess_api import (
            extract_fingerprints,
            plan_experiments,
            preprocess_dataset,
        )

        extract_fingerprints([901], num_processes=1, show_progress_bar=False)
        assert plan_experiments([901], "TopoMAEPlanner") == "TopoMAEPlans"
        plans = root / "preprocessed" / DATASET / "TopoMAEPlans.json"
        values = json.loads(plans.read_text())
        assert values["configurations"]["3d_fullres"]["topomae"]["pretraining"]["mask_ratio"] == 0.5
        values["configurations"]["3d_fullres"]["topomae"] = SECTION
        plans.write_text(json.dumps(values))
        preprocess_dataset(901, "TopoMAEPlans", ("3d_fullres",), num_processes=(1,), show_progress_bar=False)
        with chdir(root):
            yield root


def _variant(root: Path, name: str, patch_size: list[int] | None = None, **finetuning: Any) -> str:
    folder = root / "preprocessed" / DATASET
    values = json.loads((folder / "TopoMAEPlans.json").read_text())
    values["plans_name"] = name
    values["configurations"]["3d_fullres"]["topomae"]["finetuning"] |= finetuning
    if patch_size is not None:
        values["configurations"]["3d_fullres"]["patch_size"] = patch_size
    (folder / f"{name}.json").write_text(json.dumps(values))
    return name


def _train(
    trainer: str,
    plans: str = "TopoMAEPlans",
    configuration: str = "3d_fullres",
    fold: int = 0,
    workers: int = 0,
    **options: Any,
) -> None:
    """Train, with batches drawn by other processes or, without workers, by the training's own."""
    import torch
    from nnunetv2.run.run_training import run_training

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", str(workers))
        run_training("901", configuration, fold, trainer, plans, device=torch.device("cpu"), **options)


def _fold(root: Path, trainer: str, plans: str = "TopoMAEPlans") -> Path:
    return root / "results" / DATASET / f"{trainer}__{plans}__3d_fullres" / "fold_0"


def _epochs(fold: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (fold / "metrics.jsonl").read_text().splitlines()]


def _train_until(epoch: int, trainer: str, plans: str = "TopoMAEPlans", **options: Any) -> None:
    """Train, and die at the start of an epoch, as by a power cut."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    original = nnUNetTrainer.on_train_epoch_start

    def on_train_epoch_start(self: Any) -> None:
        if self.current_epoch == epoch:
            raise KeyboardInterrupt
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nnUNetTrainer, "on_train_epoch_start", on_train_epoch_start)
        with pytest.raises(KeyboardInterrupt):
            _train(trainer, plans, **options)


def _transferred(fold: Path) -> dict[str, str]:
    """What became of every weight."""
    return dict(json.loads((fold / "transfer.json").read_text())["weights"])


def _parts(weights: dict[str, str], became: str = "copied") -> set[str]:
    """Parts of a network of whose weights something became."""
    return {name.split(".")[0] for name, what in weights.items() if what == became}


def _splits(root: Path) -> list[dict[str, list[str]]]:
    return list(json.loads((root / "preprocessed" / DATASET / "splits_final.json").read_text()))


class Pretraining(NamedTuple):
    """A pre-training of fold 0 that was interrupted after its first epoch and continued.

    Attributes:
        file: its final checkpoint.
        interrupted: the records of its epochs when it was interrupted.
        refusal: what the fusion trainer said at that time.
    """

    file: Path
    interrupted: list[dict[str, Any]]
    refusal: str


@pytest.fixture(scope="module")
def pretraining(workspace: Path) -> Pretraining:
    fold = _fold(workspace, "TopoMAEPretrainer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNUNET_TOPOMAE_TENSORBOARD", str(int(find_spec("tensorboard") is not None)))
        _train_until(1, "TopoMAEPretrainer", workers=1)
        interrupted = _epochs(fold)
        with pytest.raises(FileNotFoundError) as refused:
            _train("TopoMAEFusionTrainer")
        _train("TopoMAEPretrainer", workers=1, continue_training=True)
    return Pretraining(fold / "checkpoint_final.pth", interrupted, str(refused.value))


def test_the_fusion_trainer_says_what_to_run_first(workspace: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"nnUNetv2_train {DATASET} 3d_fullres 0 -tr TopoMAEPretrainer"):
        _train("TopoMAEFusionTrainer", _variant(workspace, "untrained"))


def test_2d_configuration_is_refused(workspace: Path) -> None:
    with pytest.raises(ValueError, match="3D configurations only"):
        _train("TopoMAEPretrainer", configuration="2d")


def test_an_interrupted_pre_training_continues(pretraining: Pretraining) -> None:
    assert [epoch["epoch"] for epoch in pretraining.interrupted] == [0]
    assert re.search("no finished pre-training .*\n.*--c", pretraining.refusal)
    epochs = _epochs(pretraining.file.parent)
    assert [epoch["epoch"] for epoch in epochs] == [0, 1]
    assert epochs[:1] == pretraining.interrupted


def test_tensorboard_shows_terms_and_previews_of_both_parts(pretraining: Pretraining) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(pretraining.file.parent / "tensorboard"))
    events.Reload()
    shown = events.Tags()
    assert {"train/total", "monitoring/total", "lrs", "train_losses"} <= set(shown["scalars"])
    assert [event.step for event in events.Scalars("train/total")] == [0, 1]
    assert len(shown["images"]) == 4 and all(name.startswith("previews/") for name in shown["images"])


def test_pre_training_reads_and_validates_on_the_training_cases(workspace: Path, pretraining: Pretraining) -> None:
    import torch

    described = torch.load(pretraining.file, weights_only=False)["topomae"]
    split = _splits(workspace)[0]
    assert sorted(described["manifest"]["cases"]) == sorted(split["train"])
    assert described["role"] == "pretraining" and described["plan"]["channels"] == 1
    validation = pretraining.file.parent / "validation"
    summary = json.loads((validation / "summary.json").read_text())["reconstruction"]
    assert sorted(summary["cases"]) == sorted(split["train"])
    assert not {path.stem for path in (validation / "previews").iterdir()} & set(split["val"])
    pictures = sorted((pretraining.file.parent / "monitoring").glob("*/previews/*.png"))
    assert {path.parts[-3] for path in pictures} == {"epoch_1"}
    assert {path.stem for path in pictures} == set(sorted(split["train"])[:4])
    logs = "".join(path.read_text() for path in sorted(pretraining.file.parent.glob("training_log*.txt")))
    assert "1 of 2 epochs done" in logs and "loss terms (on the fixed crops of monitoring): total" in logs


def test_an_interrupted_fine_tuning_continues_and_describes_itself(
    workspace: Path, pretraining: Pretraining, capsys: pytest.CaptureFixture[str]
) -> None:
    from nnunet_topomae.cli import main
    from nnunet_topomae.training.record import read_facts

    capsys.readouterr()
    _train_until(1, "TopoMAEFusionTrainer")
    assert "weights matched" in capsys.readouterr().out
    _train("TopoMAEFusionTrainer", continue_training=True)
    fold = _fold(workspace, "TopoMAEFusionTrainer")
    assert [epoch["epoch"] for epoch in _epochs(fold)] == [0, 1]
    assert set(json.loads((fold / "validation" / "summary.json").read_text())["mean"]) == {"(1, 2)", "2"}
    assert set(read_facts(fold)) == {"parameters", "macs", "steps", "crops_per_step"}
    cases = _splits(workspace)[0]["train"]
    assert sorted(json.loads((fold / "cases_read.json").read_text())) == sorted(cases)
    capsys.readouterr()
    assert main(["doctor", "--checkpoint", str(fold / "checkpoint_final.pth")]) == 0
    printed = capsys.readouterr().out
    assert "finetuning with" in printed and f"all {len(cases)} recorded cases are unchanged" in printed


def test_given_weights_are_counted_and_checked_where_the_fold_has_no_pre_training_of_its_own(
    workspace: Path, pretraining: Pretraining, capsys: pytest.CaptureFixture[str]
) -> None:
    name, weights = _variant(workspace, "given", transfer_parts="vit"), str(pretraining.file)
    capsys.readouterr()
    _train_until(0, "TopoMAEFusionTrainer", name, pretrained_weights=weights)
    assert f"pre-trained weights from {weights}: " in capsys.readouterr().out
    assert _parts(_transferred(_fold(workspace, "TopoMAEFusionTrainer", name))) == {"vit_encoder"}
    with pytest.raises(ValueError, match="validation cases of this fold"):
        _train("TopoMAEFusionTrainer", name, fold=1, pretrained_weights=weights)


def test_weights_of_another_patch_are_refused_or_adapted(
    workspace: Path, pretraining: Pretraining, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(pretraining.file)
    name = _variant(workspace, "otherpatch", patch_size=[16, 24, 24], pretrained=weights)
    with pytest.raises(ValueError, match=r"another plan \(patch_size.*finetuning.transfer=resample"):
        _train("TopoMAEFusionTrainer", name)
    name = _variant(workspace, "adapted", patch_size=[16, 24, 24], pretrained=weights, transfer="resample")
    capsys.readouterr()
    _train_until(1, "TopoMAEFusionTrainer", name)  # one epoch with the adapted weights
    assert "of them resampled" in capsys.readouterr().out
    became = _transferred(_fold(workspace, "TopoMAEFusionTrainer", name))
    assert became["encoder.stages.0.embeddings.0.position"].startswith("resampled (8, ")
    assert became["vit_encoder.blocks.0.attn.qkv.weight"] == "copied"


def test_unetr_takes_the_vit(workspace: Path, pretraining: Pretraining) -> None:
    name = _variant(workspace, "unetr", pretrained=str(pretraining.file))
    _train_until(1, "UNETRTrainer", name)
    became = _transferred(_fold(workspace, "UNETRTrainer", name))
    assert _parts(became) == {"vit_encoder"} and _parts(became, "fresh") == {"unetr_decoder"}


def test_weights_named_in_the_plan_that_have_seen_a_validation_case_are_refused(
    workspace: Path, pretraining: Pretraining
) -> None:
    name = _variant(workspace, "named", pretrained=str(pretraining.file))
    other = sorted(_splits(workspace)[1]["val"])
    with pytest.raises(ValueError, match=f"validation cases of this fold.*{other[0]}"):
        _train("TopoMAEFusionTrainer", name, fold=1)


def test_pre_training_of_the_vit_alone(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from nnunet_topomae.architectures.build import build_copretraining_network
    from nnunet_topomae.architectures.rule import derive_network_shape
    from nnunet_topomae.config import TopoMAEConfig
    from nnunet_topomae.training.previews import Preview

    name = _variant(workspace, "vitalone")
    plans = workspace / "preprocessed" / DATASET / f"{name}.json"
    values = json.loads(plans.read_text())
    section = values["configurations"]["3d_fullres"]["topomae"]
    section["pretraining"] |= {"lambda1": 0.0, "lambda3": 0.0, "learning_rate": 0.01, "weight_decay": 0.5}
    section["topology"] |= {"every": 2}
    plans.write_text(json.dumps(values))
    _train("TopoMAEPretrainer", name)
    fold = _fold(workspace, "TopoMAEPretrainer", name)
    printed = capsys.readouterr().out
    assert "the error L_spa of always answering the mean" in printed
    assert "warning: the place of a crop carries only" in printed  # the planned patch is as large as these images
    assert json.loads((fold / "key_points.json").read_text())["share"] < 0.01

    terms = {"mse_vit", "spa_vit", "topo_vit", "total"}
    assert all(set(epoch[part]) == terms for epoch in _epochs(fold) for part in ("train", "validation"))
    assert (fold / "progress.png").is_file()
    summary = json.loads((fold / "validation" / "summary.json").read_text())["reconstruction"]
    assert set(summary["mean"]) == {"vit"}
    previews = sorted((fold / "validation" / "previews").glob("*.npz"))
    assert previews and Preview.load(previews[0]).columns == ("input", "masked", "vit")

    # The checkpoint has all weights; those of UNETR++ are the initial ones, without decay.
    trained = torch.load(fold / "checkpoint_final.pth", weights_only=False)["network_weights"]
    stage = values["configurations"]["3d_fullres"]
    architecture = TopoMAEConfig.from_configuration(stage).architecture
    strides = stage["architecture"]["arch_kwargs"]["strides"]
    shape = derive_network_shape(tuple(stage["patch_size"]), strides, architecture)
    torch.manual_seed(SECTION["pretraining"]["seed"])
    initial = build_copretraining_network(shape, 1, architecture).state_dict()
    same = {name for name, value in initial.items() if torch.equal(value, trained[name])}
    assert {name for name in initial if name.startswith(("encoder.", "decoder.", "key_points."))} <= same
    assert "vit_encoder.blocks.0.attn.qkv.weight" not in same


@pytest.mark.parametrize(
    ("trainer", "mirror_axes", "in_prediction"),
    [
        ("TopoMAEFusionTrainer", [0, 1], (0, 1)),
        ("UNETRPPTrainer", None, (0, 1, 2)),
        pytest.param("UNETRPPTrainer", [], None, marks=pytest.mark.slow),
        pytest.param("UNETRTrainer", None, (0, 1, 2), marks=pytest.mark.slow),
        pytest.param("MONAITrainer", None, (0, 1, 2), marks=pytest.mark.slow),
    ],
)
def test_training_from_scratch(
    workspace: Path,
    trainer: str,
    mirror_axes: list[int] | None,
    in_prediction: tuple[int, ...] | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch

    mirrored = "default" if mirror_axes is None else len(mirror_axes)
    options: dict[str, Any] = {"pretrained": "scratch", "mirror_axes": mirror_axes, "epochs": 1}
    if trainer == "MONAITrainer":
        options["network"] = "attention_unet"
    name = _variant(workspace, f"scratch{trainer}{mirrored}", **options)
    _train(trainer, name)
    fold = _fold(workspace, trainer, name)
    assert (fold / "validation" / "summary.json").is_file()
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["inference_allowed_mirroring_axes"] == in_prediction
    assert "weights matched" not in capsys.readouterr().out


def test_unlabelled_images_are_read_and_listed(
    workspace: Path, pretraining: Pretraining, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from nnunet_topomae.cli import main

    unlabelled = workspace / "raw" / DATASET / "imagesUn"
    unlabelled.mkdir()
    for name, case in (("u1", 20), ("u2", 21)):
        _write_case(workspace / "raw" / DATASET, case)
        moved = workspace / "raw" / DATASET / "imagesTr" / f"c{case}_0000.nii.gz"
        moved.rename(unlabelled / f"{name}_0000.nii.gz")
        (workspace / "raw" / DATASET / "labelsTr" / f"c{case}.nii.gz").unlink()
    splits = json.loads((workspace / "preprocessed" / DATASET / "splits_final.json").read_text())
    copied = splits[0]["val"][0]
    image = (workspace / "raw" / DATASET / "imagesTr" / f"{copied}_0000.nii.gz").read_bytes()
    (unlabelled / "copy_0000.nii.gz").write_bytes(image)
    assert main(["preprocess-unlabeled", "-d", "901"]) == 0
    assert "3 unlabelled images" in capsys.readouterr().out
    name = _variant(workspace, "unlabelled")
    _train_until(1, "TopoMAEPretrainer", name)
    printed = capsys.readouterr().out
    assert "and 2 unlabelled images" in printed
    assert f"left out copy: the same image as validation case {copied}" in printed
    checkpoint = torch.load(_fold(workspace, "TopoMAEPretrainer", name) / "checkpoint_latest.pth", weights_only=False)
    assert sorted(checkpoint["topomae"]["manifest"]["unlabeled"]) == ["u1", "u2"]
    assert checkpoint["topomae"]["manifest"]["intensity_statistics"] == "of each image alone"


class _Running:
    """A training as a process, with two loader workers."""

    def __init__(self, root: Path, trainer: str, plans: str, *options: str) -> None:
        self.log = root / f"{trainer}{len(options)}.log"
        command = [find_program("nnUNetv2_train"), "901", "3d_fullres", "0", "-tr", trainer, "-p", plans]
        environment = {**os.environ, "nnUNet_n_proc_DA": "2", "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
        self.process = subprocess.Popen(
            [*command, "-device", "cpu", *options],
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=root,
            start_new_session=True,
        )

    def workers(self) -> list[int]:
        """Processes that load batches: forks, with the command line of their parent."""
        found = []
        own = Path(f"/proc/{self.process.pid}/cmdline").read_bytes()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                parent = stat.read_text().rpartition(")")[2].split()[1]
                if parent == str(self.process.pid) and (stat.parent / "cmdline").read_bytes() == own:
                    found.append(int(stat.parent.name))
        return found

    def wait_for(self, condition: Callable[[], bool], seconds: float = 200.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.1)

    def end(self) -> int:
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # Python's faulthandler then says where it hangs
            self.process.wait()
            raise AssertionError(self.log.read_text()[-6000:]) from None


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_real_training_is_stopped_continued_and_killed(workspace: Path) -> None:
    trainer, name = "TopoMAEPretrainer", _variant(workspace, "long")
    file = workspace / "preprocessed" / DATASET / f"{name}.json"
    values = json.loads(file.read_text())
    values["configurations"]["3d_fullres"]["topomae"]["pretraining"] |= {"epochs": 400, "iterations_per_epoch": 3}
    file.write_text(json.dumps(values))
    fold = _fold(workspace, trainer, name)

    def epochs_done() -> int:
        return len(_epochs(fold)) if (fold / "metrics.jsonl").is_file() else 0

    # Asked to stop: a checkpoint within seconds.
    first = _Running(workspace, trainer, name)
    first.wait_for(lambda: epochs_done() >= 1)
    start = time.monotonic()
    first.process.terminate()
    assert first.end() == 128 + signal.SIGTERM and time.monotonic() - start < 30
    assert "Continue with --c." in first.log.read_text() and (fold / "checkpoint_latest.pth").is_file()
    assert "Traceback" not in first.log.read_text()
    # Continued, and a worker is killed: the training ends with the reason.
    done = epochs_done()
    second = _Running(workspace, trainer, name, "--c")
    second.wait_for(lambda: epochs_done() > done)
    os.kill(second.workers()[0], signal.SIGKILL)
    assert second.end() == 1
    printed = second.log.read_text()
    assert re.search(r"error: worker \d+, which loads batches, was killed from outside \(signal 9\)", printed), printed
    # Killed itself: its workers end with it.
    done = epochs_done()
    third = _Running(workspace, trainer, name, "--c", "--npz")
    third.wait_for(lambda: epochs_done() > done)
    workers = third.workers()
    assert len(workers) >= 2
    third.process.kill()
    assert third.end() == -signal.SIGKILL
    third.wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), seconds=10)


def _torchrun(root: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", *arguments, "-device", "cpu"]
    environment = {**os.environ, "nnUNet_n_proc_DA": "0", "nnUNet_compile": "f", **environment}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=root, env=environment, text=True, **output)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def annotated(workspace: Path) -> Iterator[None]:
    """A data set without voxels to ignore: nnU-Net's cross entropy is the mean over the others of a process."""
    file = workspace / "preprocessed" / DATASET / "dataset.json"
    text = file.read_text()
    description = json.loads(text)
    del description["regions_class_order"]
    file.write_text(json.dumps({**description, "labels": {"background": 0, "whole": 1, "core": 2, "rest": 3}}))
    yield
    file.write_text(text)


def _two_machines(root: Path, plans: str, trainer: str) -> "list[subprocess.Popen[str]]":
    """One training by two torchruns on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    train = ["-m", "nnunet_topomae.cli", "train", "901", "3d_fullres", "0", "-p", plans, "-tr", trainer]
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    return [_torchrun(root, *meeting, "--node-rank", rank, *train, PYTHONSAFEPATH="1") for rank in "01"]


def _train_with_num_gpus(trainer: str, plans: str) -> None:
    """`nnUNetv2_train -num_gpus 2`, with the CPU in place of GPUs, gloo of NCCL, and forks of fresh Pythons."""
    import nnunetv2.run.run_training as run
    import torch
    from torch import distributed, multiprocessing

    get_trainer, connect = run.get_trainer_from_args, distributed.init_process_group
    with socket.socket() as free, pytest.MonkeyPatch.context() as patch:
        free.bind(("127.0.0.1", 0))
        patch.setenv("MASTER_PORT", str(free.getsockname()[1]))
        patch.setenv("MASTER_ADDR", "")
        free.close()
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.setattr(run, "get_trainer_from_args", partial(get_trainer, device=torch.device("cpu")))
        patch.setattr(distributed, "init_process_group", lambda _, **place: connect("gloo", **place))
        patch.setattr(torch.cuda, "set_device", lambda _: None)
        patch.setattr(multiprocessing, "spawn", partial(multiprocessing.start_processes, start_method="fork"))
        run.run_training("901", "3d_fullres", 0, trainer, plans, num_gpus=2)


def _parallel_variant(root: Path, name: str, epochs: int) -> str:
    """Plans for a batch of two crops without padding: means of both processes are over equally many voxels."""
    _variant(root, name, patch_size=[16, 24, 24], epochs=epochs)
    file = root / "preprocessed" / DATASET / f"{name}.json"
    values = json.loads(file.read_text())
    configuration = values["configurations"]["3d_fullres"]
    configuration["batch_size"] = 2
    configuration["topomae"]["pretraining"] |= {"epochs": epochs, "iterations_per_epoch": 1, "preview_every": 0}
    file.write_text(json.dumps(values))
    return name


@pytest.mark.usefixtures("annotated")
def test_two_processes_train_like_one(workspace: Path) -> None:
    """Pre-training on two machines (two torchruns), and both kinds of training with nnU-Net's `-num_gpus`."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_topomae.trainers.pretrainer import TopoMAEPretrainer

    two, gpus, one = (_parallel_variant(workspace, name, 1) for name in ("parallel", "gpus", "alone"))
    for machine in _two_machines(workspace, two, "TopoMAEPretrainer"):
        printed, _ = machine.communicate(timeout=200)
        assert machine.returncode == 0, printed[-4000:]
    for trainer, plans in (("TopoMAEPretrainer", (two, gpus)), ("UNETRPPTrainer", (gpus,))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TopoMAEPretrainer, "perform_actual_validation", lambda *_: None)
            _train_with_num_gpus(trainer, gpus)
            patch.setattr(nnUNetTrainer, "perform_actual_validation", lambda *_: None)
            _train(trainer, one)
        for name in plans:
            folds = [_fold(workspace, trainer, plan) for plan in (name, one)]
            (parallel,), (alone,) = (_epochs(fold) for fold in folds)
            assert parallel["train"] == pytest.approx(alone["train"], rel=1e-4)
            ends = [torch.load(fold / "checkpoint_final.pth", weights_only=True) for fold in folds]
            assert ends[0]["topomae"]["manifest"]["cases"] == ends[1]["topomae"]["manifest"]["cases"]
            best = set() if trainer == "TopoMAEPretrainer" else {"checkpoint_best.pth"}
            written = [{path.name for path in fold.glob("*.pth")} for fold in folds]
            assert written == [{"checkpoint_final.pth", *best}] * 2
            # AdamW's first average is a tenth of the gradient.
            averages = [[state["exp_avg"] for state in end["optimizer_state"]["state"].values()] for end in ends]
            size = torch.stack([average.norm() for average in averages[1]]).norm()
            assert size > 1e-3
            for first, second in zip(*averages, strict=True):
                assert (first - second).norm() <= 1e-4 * second.norm() + 1e-5 * size


def _children(number: int) -> list[int]:
    """Processes that a process has started and that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if parent == str(number) and state != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_process_that_dies_ends_the_others_with_a_message(workspace: Path) -> None:
    trainer, name = "TopoMAEPretrainer", _parallel_variant(workspace, "dies", 400)
    machines = _two_machines(workspace, name, trainer)
    metrics, deadline = _fold(workspace, trainer, name) / "metrics.jsonl", time.monotonic() + 120
    while not metrics.is_file() and time.monotonic() < deadline and machines[0].poll() is None:
        time.sleep(0.1)
    processes = [number for machine in machines for number in _children(machine.pid)]
    try:
        assert len(processes) == 2
        os.kill(processes[1], signal.SIGKILL)
        said = [machine.communicate(timeout=60)[0] for machine in machines]
        assert [machine.returncode for machine in machines] == [1, 1], said
        assert re.search("error: process 0 of 2 ended: .*another process has ended before.*--c", said[0]), said
        assert "SIGKILL" in said[1] or "Signal 9" in said[1], said
        assert not any(Path(f"/proc/{number}").exists() for number in processes)
    finally:
        for machine in machines:
            for number in _children(machine.pid):
                os.kill(number, signal.SIGKILL)
            machine.kill()


def _own_network(root: Path, name: str, pretrainer: str, architecture: dict[str, Any], section: dict[str, Any]) -> str:
    """Plans that pre-train nnU-Net's own network for an epoch."""
    _variant(root, name, epochs=1, pretrainer=pretrainer)
    file = root / "preprocessed" / DATASET / f"{name}.json"
    plans = json.loads(file.read_text())
    values = plans["configurations"]["3d_fullres"]["topomae"]
    values["architecture"] |= {"partner": "plan", **architecture}
    values["pretraining"] |= {"epochs": 1, **section}
    file.write_text(json.dumps(plans))
    return name


@pytest.mark.parametrize(
    ("trainer", "architecture", "section", "expected"),
    [
        ("TopoMAEPretrainer", {"vit": "none"}, {"partner_masking": "sparse"}, {"mse_partner", "spa_partner"}),
        ("VectorPOSEPretrainer", {}, {}, {"clean_partner", "edge_partner", "vec_partner"}),
    ],
)
def test_nnunets_own_network_is_pre_trained_and_trained(
    workspace: Path, trainer: str, architecture: dict[str, Any], section: dict[str, Any], expected: set[str]
) -> None:
    import torch

    name = _own_network(workspace, f"ownNetwork{trainer}", trainer, architecture, section)
    _train(trainer, name)
    (epoch,) = (_fold(workspace, trainer, name) / "metrics.jsonl").read_text().splitlines()
    terms = json.loads(epoch)["train"]
    assert expected <= set(terms) and not any(key.endswith("_vit") for key in terms)
    _train("PretrainedNNUNetTrainer", name)
    fold = _fold(workspace, "PretrainedNNUNetTrainer", name)
    assert json.loads((fold / "transfer.json").read_text())["source"]["partner"] is True
    assert (fold / "validation" / "summary.json").is_file()
    weights = torch.load(fold / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert not any(key.startswith(("vit_encoder", "masking")) for key in weights)


# nnU-Net's commands, with two steps per epoch. The first argument says which one.
STOCK = """
import sys
from importlib.util import find_spec

assert find_spec("nnunet_topomae") is None, "this environment is to be without the package"
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

initialize = nnUNetTrainer.initialize


def short(self):
    self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1
    initialize(self)


nnUNetTrainer.initialize = short
if __name__ == "__main__":
    {"train": run_training_entry, "predict": predict_entry_point}[sys.argv.pop(1)]()
"""


def test_stock_nnunet_without_this_package_trains_validates_and_predicts_from_exported_weights(
    workspace: Path, tmp_path: Path
) -> None:
    from nnunet_topomae.cli import main

    name = _own_network(workspace, "exported", "TopoMAEPretrainer", {"vit": "none"}, {})
    _train("TopoMAEPretrainer", name)
    checkpoint, weights = _fold(workspace, "TopoMAEPretrainer", name) / "checkpoint_final.pth", tmp_path / "weights.pth"
    assert main(["export-weights", str(checkpoint), "--for", "nnUNetTrainer", "-o", str(weights)]) == 0
    environment = run_path(str(Path(__file__).with_name("test_installed_wheel.py")))["Environment"](tmp_path / "stock")
    script = tmp_path / "stock.py"
    script.write_text(STOCK)
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*arguments: str) -> str:
        command = [environment.python, script, *arguments, "-device", "cpu"]
        done = subprocess.run(
            command, env={**variables, "nnUNet_n_proc_DA": "0"}, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = run(
        "train", "901", "3d_fullres", "0", "-p", name, "-tr", "nnUNetTrainer", "-pretrained_weights", str(weights)
    )
    assert f"Loading pretrained weights from file  {weights}" in said
    fold = _fold(workspace, "nnUNetTrainer", name)
    assert (fold / "checkpoint_final.pth").is_file() and (fold / "validation" / "summary.json").is_file()
    images, predicted = tmp_path / "images", tmp_path / "predicted"
    images.mkdir()
    (images / "c1_0000.nii.gz").symlink_to(workspace / "raw" / DATASET / "imagesTr" / "c1_0000.nii.gz")
    model = ["-d", "901", "-c", "3d_fullres", "-p", name, "-tr", "nnUNetTrainer", "-f", "0", "--disable_tta"]
    run("predict", "-i", str(images), "-o", str(predicted), *model, "-npp", "0", "-nps", "0")
    assert sitk.ReadImage(str(predicted / "c1.nii.gz")).GetSize() == SHAPE[::-1]
