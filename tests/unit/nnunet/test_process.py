"""Child processes and their logs."""

from pathlib import Path

import pytest

from nnunet_topomae.nnunet.process import find_program, last_lines


def test_a_missing_program_is_named() -> None:
    with pytest.raises(RuntimeError, match="nnUNetv2_no_such_command"):
        find_program("nnUNetv2_no_such_command")


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert last_lines(log) == []
    log.write_bytes(b"".join(b"line %d\n\n" % number for number in range(30)))
    assert last_lines(log) == [f"line {number}" for number in range(10, 30)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_of_an_overwritten_line_its_last_state_is_shown(tmp_path: Path, end: bytes) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"start\n 10 %|\r 50 %|\r100 %|" + end)
    assert last_lines(log) == ["start", "100 %|"]
