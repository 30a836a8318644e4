"""Trainings that are stopped by signals and continued, inside nnU-Net's own loop, with a network of one layer."""

import json
import math
import os
import secrets
import select
import shutil
import signal
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import multiprocessing, nn

from nnunet_topomae.cli import main
from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.data.cases import ImagesRead
from nnunet_topomae.trainers.endable import EndableTrainer
from nnunet_topomae.trainers.monitored import MonitoredTrainer
from nnunet_topomae.trainers.planned import PlannedTrainer
from nnunet_topomae.training import checkpoints
from nnunet_topomae.training.failures import is_expected
from nnunet_topomae.training.record import add_facts, read_facts, write_epoch
from nnunet_topomae.training.stopping import STOP_FILE

EPOCHS, STEPS = 3, 4
END = math.inf


class _Training(EndableTrainer):
    """Three epochs of four steps, each of which adds one to the weight and a random number to the bias.

    `signals` come in the middle of a step; negative ones in the middle of the validation after so many steps, halves at
    the end of the epoch after so many steps, and that of `END` while the final checkpoint is written.
    """

    role = "finetuning"

    def __init__(self, folder: Path, resume: bool = False, signals: dict[float, signal.Signals] | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.output_folder, self.local_rank, self.is_ddp = str(folder), 0, False
        self.network, self.device = nn.Linear(1, 1), torch.device("cpu")
        for parameter in self.network.parameters():
            nn.init.zeros_(parameter)
        self.seed = secrets.randbits(32)
        self.optimizer, self.grad_scaler = torch.optim.SGD(self.network.parameters(), 1.0), None
        self.logger = MetaLogger(str(folder), resume)
        self._best_ema, self.my_init_kwargs, self.inference_allowed_mirroring_axes = None, {}, (0,)
        finetuning = {"epochs": EPOCHS, "iterations_per_epoch": STEPS, "validation_iterations": 2}
        self.config = TopoMAEConfig.from_configuration({"topomae": {"finetuning": finetuning}})
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = EPOCHS, STEPS, 2
        self.current_epoch, self.disable_checkpointing, self.was_initialized = 0, False, True
        self.dataloader_train, self.dataloader_val = iter(int, 1), iter(int, 1)
        self.signals = signals or {}
        self.asks: set[int] = set()
        self.lines: list[str] = []
        self.steps_of_epochs: list[list[int]] = []

    def print_to_log_file(self, *lines: Any, **_: Any) -> None:
        self.lines += map(str, lines)

    def on_train_epoch_end(self, train_outputs: list[Any]) -> None:
        self.steps_of_epochs.append([int(output["step"]) for output in train_outputs])
        loss = np.mean([output["loss"] for output in train_outputs])
        self.logger.log("train_losses", loss, self.current_epoch)
        self.logger.log("mean_fg_dice", loss, self.current_epoch)  # with its moving average

    def train_step(self, batch: Any) -> dict[str, Any]:
        with torch.no_grad():
            self.network.weight += 1
            self.network.bias += torch.rand(1)
        step = int(self.network.weight)
        if step in self.asks:
            assert main(["stop", self.output_folder]) == 0
        self.signal(step)
        return {"step": step, "loss": self.network.bias.detach().numpy()[0].copy()}

    def signal(self, moment: float) -> None:
        if (number := self.signals.get(moment)) is not None:
            os.kill(os.getpid(), number)

    def on_validation_epoch_start(self) -> None:
        pass

    def validation_step(self, batch: Any) -> None:
        self.signal(-int(self.network.weight))

    def on_validation_epoch_end(self, val_outputs: list[Any]) -> None:
        pass

    def on_epoch_end(self) -> None:
        self.signal(int(self.network.weight) + 0.5)
        self.save_checkpoint(str(self.latest))
        self.current_epoch += 1


@pytest.fixture(autouse=True)
def _without_nnunet(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's loop and checkpoints without plans, files and validation."""
    monkeypatch.setattr(PlannedTrainer, "on_train_start", lambda self: None)
    monkeypatch.setattr(PlannedTrainer, "on_train_end", _end)
    monkeypatch.setattr(nnUNetTrainer, "on_train_epoch_start", lambda self: None)
    monkeypatch.setattr(checkpoints, "plan_facts", lambda *_: {})
    monkeypatch.setattr(checkpoints, "make_manifest", lambda *_: {})
    monkeypatch.setattr(checkpoints, "channel_names", lambda *_: [])
    monkeypatch.setattr(_Training, "images_read", ImagesRead(), raising=False)
    manager = SimpleNamespace(plans={}, dataset_name="Dataset001_A", plans_name="Plans")
    monkeypatch.setattr(_Training, "dataset_json", {}, raising=False)
    monkeypatch.setattr(_Training, "configuration_manager", SimpleNamespace(configuration={}), raising=False)
    monkeypatch.setattr(_Training, "plans_manager", manager, raising=False)
    monkeypatch.setattr(_Training, "configuration_name", "3d_fullres", raising=False)
    monkeypatch.setattr(_Training, "fold", 0, raising=False)


def _end(trainer: Any) -> None:
    """As nnU-Net does it, but the latest checkpoint stays."""
    trainer.signal(END)
    trainer.current_epoch -= 1
    trainer.save_checkpoint(_file(trainer, "final"))
    trainer.current_epoch += 1


def _file(trainer: Any, name: str) -> str:
    return str(Path(trainer.output_folder) / f"checkpoint_{name}.pth")


def _continued(folder: Path, name: str = "latest", **options: Any) -> _Training:
    """As `--c` does it."""
    trainer = _Training(folder, resume=True, **options)
    if Path(_file(trainer, name)).is_file():
        trainer.load_checkpoint(_file(trainer, name))
    return trainer


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.pth")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_training_after_the_step_and_the_other_steps_follow_later(
    tmp_path: Path, number: signal.Signals
) -> None:
    first = _Training(tmp_path, signals={6: number})
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        first.run_training()
    assert ended.value.code == 128 + number and signal.getsignal(number) == before
    assert f"{number.name}: stopped after 2 of 4 steps of epoch 1. Continue with --c." in first.lines
    second = _continued(tmp_path)
    assert second.current_epoch == 1 and float(second.network.weight) == 6 and second.seed == first.seed
    second.run_training()
    # An epoch is recorded with all its steps, those before the signal too.
    assert first.steps_of_epochs == [[1, 2, 3, 4]] and second.steps_of_epochs == [[5, 6, 7, 8], [9, 10, 11, 12]]
    assert float(second.network.weight) == EPOCHS * STEPS and second.current_epoch == EPOCHS
    _assert_same(second, _uninterrupted(tmp_path / "other", first.seed))
    # nnU-Net's own end removes the latest
    assert _names(tmp_path) == {"checkpoint_latest.pth", "checkpoint_best.pth", "checkpoint_final.pth"}


def _uninterrupted(folder: Path, seed: int) -> _Training:
    trainer = _Training(folder)
    trainer.seed = seed
    trainer.run_training()
    return trainer


def _assert_same(first: _Training, second: _Training) -> None:
    """Bit for bit: weights, and the record of the epochs."""
    assert torch.equal(first.network.bias, second.network.bias)
    for name in ("train_losses", "ema_fg_dice"):
        values = [trainer.logger.get_value(name, None) for trainer in (first, second)]
        assert values[0] == values[1] and len(values[0]) == EPOCHS


@pytest.mark.parametrize("moments", [[1], [STEPS], [-STEPS], [STEPS + 1, -2 * STEPS, 3 * STEPS]])
def test_a_training_that_signals_interrupt_anywhere_ends_as_if_there_had_been_none(
    tmp_path: Path, moments: list[int]
) -> None:
    """In the first and last step of an epoch, and in the validation at its end (negative), once or several times."""
    trainer = _Training(tmp_path)
    seed = trainer.seed
    for moment in moments:
        trainer.signals = {moment: signal.SIGTERM}
        with pytest.raises(SystemExit):
            trainer.run_training()
        trainer = _continued(tmp_path)
        assert trainer.current_epoch == (abs(moment) - 1) // STEPS and int(trainer.network.weight) == abs(moment)
    trainer.run_training()
    assert trainer.steps_of_epochs[-1] == [9, 10, 11, 12]
    _assert_same(trainer, _uninterrupted(tmp_path / "other", seed))


class _Timed(_Training):
    """Every step takes ten seconds of a clock; `seconds` are those of the epochs."""

    def __init__(self, *arguments: Any, clock: list[float], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.clock, self.seconds = clock, list[float]()

    def train_step(self, batch: Any) -> dict[str, Any]:
        self.clock[0] += 10.0
        return super().train_step(batch)

    def on_epoch_end(self) -> None:
        self.seconds.append(self.epoch_seconds)
        super().on_epoch_end()


def test_the_time_of_an_epoch_is_that_of_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that between them. In another process, or on another machine, the clock may have started later."""
    clock = [1000.0]
    monkeypatch.setattr("nnunet_topomae.trainers.recorded.monotonic", lambda: clock[0])
    trainer, seconds = _Timed(tmp_path, clock=clock), list[float]()
    for moment in (6, 7):
        trainer.signals = {moment: signal.SIGTERM}
        with pytest.raises(SystemExit):
            trainer.run_training()
        seconds += trainer.seconds
        clock[0] = 5.0
        trainer = _Timed(tmp_path, resume=True, clock=clock)
        trainer.load_checkpoint(_file(trainer, "latest"))
    trainer.run_training()
    assert seconds + trainer.seconds == EPOCHS * [10.0 * STEPS]


@pytest.mark.parametrize("moment", [EPOCHS * STEPS + 0.5, END])
def test_a_signal_after_the_last_batch_ends_the_training_before_its_final_validation(
    tmp_path: Path, moment: float
) -> None:
    trainer = _Training(tmp_path, signals={moment: signal.SIGTERM})
    with pytest.raises(SystemExit) as ended:
        trainer.run_training()
    assert ended.value.code == 128 + signal.SIGTERM and trainer.current_epoch == EPOCHS
    assert "SIGTERM: ended before the final validation, which --val does." in trainer.lines
    again = _continued(tmp_path, "final")
    again.run_training()
    assert again.steps_of_epochs == [] and float(again.network.weight) == EPOCHS * STEPS


class _Busy(_Training):
    """In its sixth step it runs code that is not Python's until the signals are there, which Python then sorts."""

    awaited: set[signal.Signals]

    def train_step(self, batch: Any) -> dict[str, Any]:
        if int(self.network.weight) == 5:
            signal.pthread_sigmask(signal.SIG_BLOCK, self.awaited)
            Path(self.output_folder, "busy").touch()
            deadline = time.monotonic() + 20
            while not self.awaited <= signal.sigpending() and time.monotonic() < deadline:
                time.sleep(0.001)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self.awaited)
        return super().train_step(batch)


def _rank(rank: int, folder: Path, awaited: set[signal.Signals]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the shell's & ignores it
    trainer = _Busy(folder)
    trainer.awaited = awaited
    try:
        trainer.run_training()
    finally:
        Path(folder, "lines").write_text("\n".join(trainer.lines))


def _launch(folder: Path, awaited: set[signal.Signals]) -> None:
    """As nnU-Net's `-num_gpus` does it."""
    os.setsid()
    multiprocessing.start_processes(_rank, (folder, awaited), nprocs=1, start_method="fork")


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="there are no such signals")
@pytest.mark.parametrize(("send", "expected"), [(os.killpg, "SIGTERM"), (os.kill, "SIGINT")])
def test_where_the_launching_process_dies_first_its_ranks_still_write_a_checkpoint(
    tmp_path: Path, send: Any, expected: str
) -> None:
    """SLURM's SIGTERM ends the process that waits for the ranks, of which torch's ranks hear by SIGINT."""
    awaited = {signal.SIGINT, signal.Signals[expected]}
    ended, open_while_running = os.pipe()
    launcher = get_context("fork").Process(target=_launch, args=(tmp_path, awaited))
    launcher.start()
    os.close(open_while_running)
    deadline = time.monotonic() + 20
    while not (tmp_path / "busy").exists():
        assert launcher.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    send(launcher.pid, signal.SIGTERM)
    assert select.select([ended], [], [], 20)[0]  # the rank has ended too
    os.close(ended)
    launcher.join()
    assert launcher.exitcode == -signal.SIGTERM
    assert f"{expected}: stopped after 2 of 4 steps of epoch 1. Continue with --c." in (tmp_path / "lines").read_text()
    assert float(_continued(tmp_path).network.weight) == 6


def test_without_checkpointing_a_signal_writes_nothing(tmp_path: Path) -> None:
    trainer = _Training(tmp_path, signals={1: signal.SIGTERM})
    trainer.disable_checkpointing = True
    with pytest.raises(SystemExit):
        trainer.run_training()
    assert _names(tmp_path) == set()


def test_other_processes_of_a_distributed_training_leave_the_end_to_the_first_one(tmp_path: Path) -> None:
    trainer = _Training(tmp_path, signals={2: signal.SIGTERM})
    trainer.local_rank = 1
    trainer.run_training()
    assert [len(steps) for steps in trainer.steps_of_epochs] == [4, 4, 4] and _names(tmp_path) == set()


def test_a_broken_latest_checkpoint_is_named_and_the_previous_one_taken(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        _Training(tmp_path, signals={9: signal.SIGTERM}).run_training()
    latest = tmp_path / "checkpoint_latest.pth"
    latest.write_bytes(latest.read_bytes()[:100])
    trainer = _continued(tmp_path)
    assert trainer.current_epoch == 2 and float(trainer.network.weight) == 8
    assert any(f"broken checkpoint: {latest} is cut off" in line for line in trainer.lines)
    trainer.run_training()
    assert float(trainer.network.weight) == EPOCHS * STEPS


def test_a_previous_checkpoint_alone_is_found_although_nnunet_does_not_know_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        _Training(tmp_path, signals={5: signal.SIGTERM}).run_training()
    (tmp_path / "checkpoint_latest.pth").unlink()
    trainer = _continued(tmp_path)
    assert not trainer.continued
    trainer.run_training()
    assert trainer.continued and trainer.steps_of_epochs == [[5, 6, 7, 8], [9, 10, 11, 12]]


@pytest.mark.parametrize(("previous", "best", "taken"), [(2, 1, 2), (2, 2, 2), (1, 2, 2)])
def test_without_a_latest_checkpoint_the_newer_of_previous_and_best_is_taken(
    tmp_path: Path, previous: int, best: int, taken: int
) -> None:
    """nnU-Net knows of the best one only."""
    kept = [tmp_path / f"of_epoch_{epoch}" for epoch in range(EPOCHS)]
    trainer = _Training(tmp_path)
    for epoch in (1, 2):
        trainer.signals = {epoch * STEPS + 1: signal.SIGTERM}
        with pytest.raises(SystemExit):
            trainer.run_training()
        shutil.copy(tmp_path / "checkpoint_previous.pth", kept[epoch])
        trainer = _continued(tmp_path)
    (tmp_path / "checkpoint_latest.pth").unlink()
    shutil.copy(kept[previous], tmp_path / "checkpoint_previous.pth")
    shutil.copy(kept[best], tmp_path / "checkpoint_best.pth")
    trainer = _Training(tmp_path, resume=True)
    maybe_load_checkpoint(trainer, True, False)
    assert trainer.current_epoch == taken and float(trainer.network.weight) == taken * STEPS
    # The best one, and no other, is what `--val_best` asks for after the training.
    trainer.load_checkpoint(_file(trainer, "best"))
    assert trainer.current_epoch == best


def test_a_broken_previous_or_best_checkpoint_is_named_where_there_is_no_latest(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        _Training(tmp_path, signals={9: signal.SIGTERM}).run_training()
    (tmp_path / "checkpoint_latest.pth").unlink()
    for name, other in (("previous", "best"), ("best", "previous")):
        whole = (tmp_path / f"checkpoint_{name}.pth").read_bytes()
        (tmp_path / f"checkpoint_{name}.pth").write_bytes(whole[:100])
        trainer = _Training(tmp_path, resume=True)
        maybe_load_checkpoint(trainer, True, False)
        assert trainer.current_epoch == 2
        # A broken best one costs nothing: the previous one is as new.
        assert any(f"checkpoint_{other}.pth instead" in line for line in trainer.lines) == (name == "previous")
        (tmp_path / f"checkpoint_{name}.pth").write_bytes(whole)


def test_a_new_training_does_not_fall_back_to_an_old_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_previous.pth").write_bytes(b"of an older training")
    (tmp_path / ".checkpoint_latest.pth.4242.0a1b2c3d.tmp").write_bytes(b"half")
    trainer = _Training(tmp_path, signals={1: signal.SIGTERM})
    with pytest.raises(SystemExit):
        trainer.run_training()
    assert _names(tmp_path) == {"checkpoint_latest.pth"} and not list(tmp_path.glob(".*.tmp"))
    assert any("removed .checkpoint_latest.pth.4242" in line for line in trainer.lines)


@pytest.mark.parametrize("end", ["on_epoch_end", "on_train_end"])
def test_a_full_disk_at_the_end_of_an_epoch_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Where nnU-Net writes itself: its plot, and what it removes at the end."""
    trainer = _Training(tmp_path)

    def fail(_: Any) -> None:
        (tmp_path / "checkpoint" / "progress.png").touch()  # a file in the folder's place

    (tmp_path / "checkpoint").touch()
    monkeypatch.setattr(nnUNetTrainer, "on_epoch_end", fail)
    monkeypatch.setattr(PlannedTrainer, "on_train_end", fail)
    with pytest.raises(OSError, match=r"results of this training cannot be written: .*progress.png") as error:
        getattr(EndableTrainer, end)(trainer)
    assert is_expected(error.value)


def test_the_latest_checkpoint_knows_how_good_the_best_one_is(tmp_path: Path) -> None:
    """nnU-Net writes the best one after the latest: killed in between, a training would replace it by a worse one."""
    trainer = _Training(tmp_path, signals={EPOCHS * STEPS: signal.SIGTERM})
    with pytest.raises(SystemExit):
        trainer.run_training()
    newest, previous, best = (
        torch.load(_file(trainer, name), weights_only=True) for name in ("latest", "previous", "best")
    )
    averages = newest["logging"]["ema_fg_dice"]
    assert averages[1] > averages[0]  # in these trainings it always rises
    assert previous["_best_ema"] == best["_best_ema"] == averages[1] and best["current_epoch"] == 2


def test_validation_alone_takes_the_final_checkpoint_or_none(tmp_path: Path) -> None:
    _Training(tmp_path).run_training()
    final = tmp_path / "checkpoint_final.pth"
    final.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{final} is empty"):
        _Training(tmp_path).load_checkpoint(str(final))
    again = _continued(tmp_path, "final")
    assert again.current_epoch == EPOCHS and any("latest.pth instead" in line for line in again.lines)
    json.dumps(torch.load(tmp_path / "checkpoint_latest.pth", weights_only=True)["logging"])


def _asked(folder: Path, *steps: int, **options: Any) -> _Training:
    trainer = _continued(folder, **options) if options else _Training(folder)
    (folder / "training_log_2026.txt").touch()
    add_facts(folder, {})
    trainer.asks = set(steps)
    trainer.run_training()
    return trainer


@pytest.mark.parametrize("step", [5, 8])
def test_the_command_ends_a_training_after_its_epoch_with_the_final_checkpoint(tmp_path: Path, step: int) -> None:
    trainer = _asked(tmp_path, step)
    assert trainer.steps_of_epochs == [[1, 2, 3, 4], [5, 6, 7, 8]] and not (tmp_path / STOP_FILE).exists()
    assert any(line.startswith("ended after 2 of 3 epochs: nnunet-topomae stop has asked") for line in trainer.lines)
    facts = read_facts(tmp_path)
    assert facts["ended_early"]["epochs"] == 2 and facts["steps"] == 8
    final = torch.load(tmp_path / "checkpoint_final.pth", weights_only=True)
    assert final["current_epoch"] == 2 and float(final["network_weights"]["weight"]) == 8
    assert "Traceback" not in "".join(trainer.lines)


def test_a_signal_does_not_keep_an_ended_training_from_its_final_checkpoint(tmp_path: Path) -> None:
    trainer = _Training(tmp_path, signals={8.5: signal.SIGTERM, END: signal.SIGTERM})
    (tmp_path / "training_log_2026.txt").touch()
    add_facts(tmp_path, {})
    trainer.asks = {5}
    with pytest.raises(SystemExit) as ended:
        trainer.run_training()
    assert ended.value.code == 128 + signal.SIGTERM
    assert torch.load(tmp_path / "checkpoint_final.pth", weights_only=True)["current_epoch"] == 2


class _Probed(_Training, MonitoredTrainer):
    """Records of all epochs have the same probe."""

    gradients: Any = SimpleNamespace(resume=lambda records: None)

    def on_epoch_end(self) -> None:
        write_epoch(Path(self.output_folder), {"epoch": self.current_epoch, "probe": {"vit": 0.5, "seconds": 1.0}})
        super().on_epoch_end()


@pytest.mark.parametrize(("patience", "epochs"), [(0, 3), (1, 2)])
def test_a_plateau_of_the_probe_ends_a_pre_training_with_the_final_checkpoint(
    tmp_path: Path, patience: int, epochs: int
) -> None:
    trainer = _Probed(tmp_path)
    pretraining = replace(trainer.config.pretraining, probe_every=1, plateau_probes=patience)
    trainer.config = replace(trainer.config, pretraining=pretraining)
    trainer.run_training()
    assert len(trainer.steps_of_epochs) == epochs
    assert torch.load(_file(trainer, "final"), weights_only=True)["current_epoch"] == epochs
    early = read_facts(tmp_path).get("ended_early")
    assert (early is not None) == (epochs < EPOCHS)
    if early is not None:
        assert early["epochs"] == epochs and early["reason"].startswith("the probe is on a plateau: 1 probes")
        assert any(line.startswith("ended after 2 of 3 epochs: the probe is on a plateau") for line in trainer.lines)


def test_an_ended_training_goes_on_and_newer_checkpoints_are_not_forgotten(tmp_path: Path) -> None:
    _asked(tmp_path, 1)
    (tmp_path / "checkpoint_latest.pth").unlink()  # as nnU-Net's end does
    second = _continued(tmp_path, "final", signals={6: signal.SIGTERM})
    with pytest.raises(SystemExit):
        second.run_training()
    assert _names(tmp_path) == {f"checkpoint_{name}.pth" for name in ("latest", "previous", "best")}  # no final one
    third = _continued(tmp_path)
    third.run_training()
    assert third.steps_of_epochs == [[5, 6, 7, 8], [9, 10, 11, 12]] and float(third.network.weight) == EPOCHS * STEPS


def test_a_request_waits_for_the_rest_of_an_epoch_and_survives_a_signal(tmp_path: Path) -> None:
    first = _Training(tmp_path, signals={6: signal.SIGTERM})
    with pytest.raises(SystemExit):
        first.run_training()
    (tmp_path / STOP_FILE).touch()
    second = _continued(tmp_path)
    second.run_training()
    assert second.steps_of_epochs == [[5, 6, 7, 8]] and second.current_epoch == 2


def test_a_new_training_forgets_the_request_to_an_old_one(tmp_path: Path) -> None:
    (tmp_path / STOP_FILE).touch()
    trainer = _Training(tmp_path)
    trainer.run_training()
    assert [len(steps) for steps in trainer.steps_of_epochs] == [4, 4, 4] and not (tmp_path / STOP_FILE).exists()


def test_only_the_folder_of_a_training_can_be_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", str(tmp_path / "nothing")]) == 2
    (tmp_path / "fold_1").mkdir()
    assert main(["stop", str(tmp_path)]) == 2
    (tmp_path / "fold_1" / "training_log_1.txt").touch()
    assert main(["stop", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "there is no folder" in errors[0] and "name a fold's folder, fold_N" in errors[1]
    assert "name one of its folds: fold_1" in errors[2] and not list(tmp_path.rglob(STOP_FILE))


def test_a_training_that_would_not_read_the_request_is_not_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    final, started = tmp_path / "checkpoint_final.pth", tmp_path / "debug.json"
    (tmp_path / "training_log_1.txt").touch()
    assert main(["stop", str(tmp_path)]) == 2
    assert "has no training.json, so its trainer is not one of nnunet-topomae" in capsys.readouterr().err
    add_facts(tmp_path, {})
    started.touch()
    final.touch()
    os.utime(started, (1, 1))
    assert main(["stop", str(tmp_path)]) == 2
    assert f"the training in {tmp_path} has ended, with checkpoint_final.pth" in capsys.readouterr().err
    assert not (tmp_path / STOP_FILE).exists()
    os.utime(final, (0, 0))  # of an older training, in the folder of one that runs
    assert main(["stop", str(tmp_path)]) == 0 and (tmp_path / STOP_FILE).exists()
