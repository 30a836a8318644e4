import errno
import json
import multiprocessing
import os
import resource
from pathlib import Path

import pytest

from nnunet_topomae.files import hash_file, hash_json, read_json, strict_json, write_json, write_text, write_whole
from nnunet_topomae.training.failures import is_expected


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="half way"), write_whole(file) as new:
        new.write(b"half")
        raise RuntimeError("half way")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=r"^cannot write .*metrics.jsonl: File too large. .* have room.$") as error:
            write_text(file, "x" * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert is_expected(error.value)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_a_folder_that_became_read_only_or_was_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(next(tmp_path.glob(".*"))))

    with pytest.raises(OSError, match=r"^cannot write .*a.json: No such file or directory. Its folder") as error:
        write_json(tmp_path / "removed" / "a.json", [])
    assert is_expected(error.value)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match=r"^cannot write .*a.json: Read-only file system. Its folder") as error:
        write_json(tmp_path / "a.json", [])
    assert is_expected(error.value) and not list(tmp_path.iterdir())


def test_an_error_of_another_file_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"input\.txt"), write_whole(tmp_path / "a.bin") as file:
        file.write((tmp_path / "input.txt").read_bytes())


def test_the_file_appears_at_the_end_with_the_rights_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    file = tmp_path / "a.bin"
    with write_whole(file) as new:
        new.write(b"whole")
        assert not file.exists()
    assert file.read_bytes() == b"whole"
    assert file.stat().st_mode == (tmp_path / "usual").stat().st_mode


def _write(file: str, number: int) -> None:
    for _ in range(50):
        write_json(Path(file), [number] * 1000)


def test_several_processes_may_write_one_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(str(file), number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(set(read_json(file))) == 1
    assert list(tmp_path.iterdir()) == [file]


def test_json_that_is_none_is_refused_with_the_files_name(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_text(file, "{ half")
    with pytest.raises(ValueError, match=r"a\.json is not JSON"):
        read_json(file)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json")


def test_strict_json_has_no_nan() -> None:
    value = {"a": [float("nan"), 1.0], "b": (float("inf"), "x", True)}
    assert strict_json(value) == {"a": [None, 1.0], "b": [None, "x", True]}
    json.dumps(strict_json(value), allow_nan=False)


def test_hashes(tmp_path: Path) -> None:
    assert hash_json({"a": 1, "b": [2]}) == hash_json({"b": [2], "a": 1}) != hash_json({"a": 1, "b": [3]})
    file = tmp_path / "empty"
    file.touch()
    assert hash_file(file) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
