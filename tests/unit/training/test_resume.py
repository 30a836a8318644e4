"""What is left after a kill, and where a training continues."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from nnunet_topomae.files import write_whole
from nnunet_topomae.training.checkpoints import save_atomically
from nnunet_topomae.training.failures import is_expected
from nnunet_topomae.training.loading import DamagedCheckpointError
from nnunet_topomae.training.resume import (
    ORDER,
    check_same_training,
    drop_previous,
    keep_previous,
    newest_whole,
    restore,
    sweep,
)

WRITER = """
import sys, time
from pathlib import Path
from nnunet_topomae.files import write_whole
with write_whole(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def _save(folder: Path, name: str, epoch: int) -> Path:
    save_atomically({"current_epoch": epoch}, folder / name)
    return folder / name


def test_half_written_checkpoints_are_swept_once_their_process_is_dead(tmp_path: Path) -> None:
    latest = _save(tmp_path, "checkpoint_latest.pth", 3)
    other = tmp_path / ".metrics.jsonl.1.abcdef01.tmp"
    other.touch()
    (tmp_path / ".checkpoint_latest.pth.4242.tmp").touch()  # of earlier versions
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(latest)], stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
    with write_whole(tmp_path / "checkpoint_best.pth"):
        assert sweep(tmp_path) == [".checkpoint_latest.pth.4242.tmp"]  # the two others are being written
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(removed := sweep(tmp_path)) == 1 and removed[0].startswith(f".checkpoint_latest.pth.{writer.pid}.")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        other.name, "checkpoint_best.pth", "checkpoint_latest.pth",
    ]  # fmt: skip
    assert newest_whole(latest, print)[1] == {"current_epoch": 3}


def test_without_locks_a_half_written_checkpoint_is_swept_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems have none, and a process on another machine may be at work."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    ended = subprocess.Popen(["true"])
    ended.wait()
    files = {
        name: tmp_path / f".checkpoint_latest.pth.{process}.0a1b2c3{number}.tmp"
        for number, (name, process) in enumerate({"old": ended.pid, "new": ended.pid, "running": os.getpid()}.items())
    }
    for name, file in files.items():
        file.touch()
        age = 23 * 3600 if name == "new" else 25 * 3600
        os.utime(file, (time.time() - age,) * 2)
    assert sweep(tmp_path) == [files["old"].name]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the writer is a fork")
def test_whenever_a_saving_process_is_killed_the_newest_checkpoint_is_whole(tmp_path: Path) -> None:
    """It does nothing but save, and is killed at any moment of that, again and again."""
    latest, moments = _save(tmp_path, "checkpoint_latest.pth", 0), random.Random(5)
    epochs = [0]
    for _ in range(6):
        done, tell = os.pipe()
        if (writer := os.fork()) == 0:
            with suppress(BaseException):
                for epoch in count(epochs[-1] + 1):
                    keep_previous(latest)
                    save_atomically({"current_epoch": epoch, "weights": torch.zeros(20_000)}, latest)
                    os.write(tell, b"x")
            os._exit(1)
        assert os.read(done, 1) == b"x"
        time.sleep(moments.uniform(0.0, 0.01))
        os.kill(writer, signal.SIGKILL)
        assert os.waitpid(writer, 0)[1] == signal.SIGKILL  # and not by an error
        lines: list[str] = []
        epochs.append(newest_whole(latest, lines.append)[1]["current_epoch"])
        assert not any("broken" in line for line in lines)
        sweep(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} <= {latest.name, "checkpoint_previous.pth"}
        os.close(done)
        os.close(tell)
    assert epochs == sorted(set(epochs))


@pytest.mark.parametrize("links", [True, False])
def test_the_previous_checkpoint_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", lambda self, target: os.link(target, tmp_path / "no" / "folder"))
    latest = tmp_path / "checkpoint_latest.pth"
    for epoch in (1, 2, 3):
        keep_previous(latest)
        assert epoch == 1 or (tmp_path / "checkpoint_previous.pth").is_file()
        assert not links or epoch == 1 or latest.is_file()
        _save(tmp_path, latest.name, epoch)
    assert newest_whole(latest, print)[1] == {"current_epoch": 3}
    assert newest_whole(tmp_path / "checkpoint_previous.pth", print)[1] == {"current_epoch": 2}
    drop_previous(tmp_path)
    drop_previous(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [latest.name]


@pytest.mark.parametrize("broken", range(len(ORDER)))
def test_the_newest_whole_checkpoint_is_taken_and_broken_ones_are_named(tmp_path: Path, broken: int) -> None:
    for epoch, name in enumerate(ORDER):
        _save(tmp_path, name, epoch)
    for name in ORDER[:broken]:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-30])
    lines: list[str] = []
    file, checkpoint = newest_whole(tmp_path / ORDER[0], lines.append)
    assert (file.name, checkpoint["current_epoch"]) == (ORDER[broken], broken)
    assert len(lines) == (broken + 1 if broken else 0)
    assert all(str(tmp_path / name) in line for name, line in zip(ORDER[:broken], lines, strict=False))
    assert not broken or f"continuing from {file}" in lines[-1]


def test_nothing_to_continue_from_names_every_broken_file(tmp_path: Path) -> None:
    for name in ORDER[1:3]:
        (tmp_path / name).touch()
    with pytest.raises(DamagedCheckpointError, match=r"latest.pth is empty.*previous.pth is empty.*without --c"):
        newest_whole(tmp_path / ORDER[1], print)


def _trainer(network: nn.Module) -> Any:
    return SimpleNamespace(
        network=network, optimizer=torch.optim.SGD(network.parameters(), 0.1), grad_scaler=None, logger=None
    )


def test_checkpoints_that_lack_something_or_do_not_fit(tmp_path: Path) -> None:
    file, network = tmp_path / "checkpoint_latest.pth", nn.Linear(2, 3)
    with pytest.raises(
        ValueError, match=f"{file} is no checkpoint of this training: it has no entry 'network_weights'"
    ):
        restore(_trainer(network), {}, file)
    weights = {"network_weights": nn.Linear(2, 4).state_dict()}
    with pytest.raises(ValueError, match=r"does not fit this network \(size mismatch for weight.*plans file") as error:
        restore(_trainer(network), weights, file)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="does not fit"):
        restore(_trainer(network), {"network_weights": 3}, file)


def test_a_full_disk_is_one_line_and_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: writing fails with an OSError in both cases."""
    latest = _save(tmp_path, "checkpoint_latest.pth", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(
            OSError, match=r"cannot write checkpoint .*latest.pth: .*is kept.*continue with --c"
        ) as error:
            save_atomically({"a": torch.ones(100_000)}, latest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert newest_whole(latest, print)[1] == {"current_epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == [latest.name]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latest = _save(tmp_path, "checkpoint_latest.pth", 1)

    def refuse(self: Path, mode: str = "r") -> Any:
        raise OSError(30, "Read-only file system", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(OSError, match=r"cannot write checkpoint .*Read-only file system.*is kept"):
            save_atomically({"a": 1}, latest)
        patch.setattr(os, "link", lambda *_, **__: refuse(latest))
        patch.setattr(os, "replace", lambda *_, **__: refuse(latest))
        with pytest.raises(OSError, match=r"results of this training cannot be written: .*Read-only") as error:
            keep_previous(latest)
        assert is_expected(error.value)
    assert newest_whole(latest, print)[1] == {"current_epoch": 1}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset", "Dataset002_B"),
        ("plans_name", "Other"),
        ("configuration", "3d_lowres"),
        ("fold", 1),
        ("fold", "all"),
    ],
)
def test_a_checkpoint_of_another_training_is_not_continued(tmp_path: Path, key: str, value: Any) -> None:
    own = {"dataset": "Dataset001_A", "plans_name": "Plans", "configuration": "3d_fullres", "fold": 0}
    for described in (own, {}):
        check_same_training(described, own, tmp_path / "checkpoint_latest.pth")
    with pytest.raises(ValueError, match=rf"latest.pth is a checkpoint of another training \({key} {value}, not "):
        check_same_training({**own, key: value}, own, tmp_path / "checkpoint_latest.pth")
