"""Checkpoints that are damaged, and checkpoints that attack."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_topomae.files import hash_file
from nnunet_topomae.training.checkpoints import plain, save_atomically
from nnunet_topomae.training.loading import (
    TRUST_VARIABLE,
    DamagedCheckpointError,
    UntrustedCheckpointError,
    load_checkpoint_file,
)


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.file,)


def _save(file: Path) -> bytes:
    save_atomically({"network_weights": {"a": torch.arange(5000.0)}, "epoch": 3}, file)
    return file.read_bytes()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: b"", "is empty"),
        (lambda content: content[: len(content) // 2], "is cut off"),
        (lambda content: content[:-1], "is cut off"),
        (lambda content: b"PK\x03\x04 cut off", "is cut off"),
        (lambda content: b"no archive at all", "or no checkpoint"),
        (lambda content: content[:9000] + bytes([content[9000] ^ 1]) + content[9001:], "is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_one_line_with_file_and_cure(
    tmp_path: Path, damage: Callable[[bytes], bytes], says: str
) -> None:
    file = tmp_path / "checkpoint_latest.pth"
    file.write_bytes(damage(_save(file)))
    with pytest.raises(DamagedCheckpointError, match=says) as error:
        load_checkpoint_file(file)
    message = str(error.value)
    assert message.startswith(str(file)) and "--c" in message and "\n" not in message


def test_other_contents_and_missing_files(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DamagedCheckpointError, match="holds a list"):
        load_checkpoint_file(tmp_path / "list.pth")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_checkpoint_file(tmp_path / "none.pth")


def _nested(attack: Attack) -> dict[str, Any]:
    return {"network_weights": {}, "topomae": {"role": "pretraining"}, "logging": {"x": [attack]}}


@pytest.mark.parametrize(
    "write",
    [
        lambda attack, file: torch.save(attack, file),
        lambda attack, file: torch.save(_nested(attack), file),
        lambda attack, file: torch.save({"a": np.array([attack], dtype=object)}, file),
        lambda attack, file: torch.save(_nested(attack), file, _use_new_zipfile_serialization=False),
        lambda attack, file: file.write_bytes(pickle.dumps(attack)),
    ],
    ids=["plain", "nested", "array", "old format", "pickle"],
)
def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, write: Callable[[Attack, Path], Any]) -> None:
    file, executed = tmp_path / "checkpoint_final.pth", tmp_path / "executed"
    write(Attack(executed), file)
    with pytest.raises((UntrustedCheckpointError, DamagedCheckpointError), match=str(file)):
        load_checkpoint_file(file)
    assert not executed.exists()


def test_only_the_file_that_is_named_by_its_hash_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, executed = tmp_path / "checkpoint_final.pth", tmp_path / "executed"
    torch.save(_nested(Attack(executed)), file)
    for value in ("1", "0" * 64):
        monkeypatch.setenv(TRUST_VARIABLE, value)
        with pytest.raises(UntrustedCheckpointError, match=f"runs code.*{TRUST_VARIABLE}={hash_file(file)}"):
            load_checkpoint_file(file)
    assert not executed.exists()
    monkeypatch.setenv(TRUST_VARIABLE, hash_file(file))
    assert load_checkpoint_file(file)["topomae"] == {"role": "pretraining"} and executed.exists()


def test_what_nnunet_logs_is_read_and_what_we_save_needs_no_exception(tmp_path: Path) -> None:
    log = {"dice": [np.float64(0.5), np.float32(0.25), [np.array([1, 2]), (np.bool_(True), None, "x")]]}
    file = tmp_path / "stock.pth"
    torch.save({"logging": log}, file)
    assert load_checkpoint_file(file)["logging"]["dice"][0] == 0.5
    assert plain(log) == {"dice": [0.5, 0.25, [[1, 2], (True, None, "x")]]}
    torch.save({"logging": plain(log)}, file)
    assert torch.load(file, weights_only=True)["logging"] == plain(log)
