from pathlib import Path

import pytest

from nnunet_topomae.training.progress import METRICS_FILE, average_terms, plot_terms, read_epochs, write_epoch


def test_average_over_the_steps_that_have_a_term() -> None:
    steps = [{"a": 1.0, "b": 4.0}, {"a": 3.0}]
    assert average_terms(steps) == {"a": 2.0, "b": 4.0}


def test_a_continued_training_replaces_what_it_repeats(tmp_path: Path) -> None:
    for epoch, value in [(0, 1.0), (1, 2.0), (2, 3.0), (1, 5.0)]:
        write_epoch(tmp_path, {"epoch": epoch, "train": {"a": value}, "validation": {}})
    assert [(r["epoch"], r["train"]["a"]) for r in read_epochs(tmp_path)] == [(0, 1.0), (1, 5.0)]


def test_a_cut_off_last_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text('{"epoch": 0}\n{"epoch": 1, "tr')
    assert read_epochs(tmp_path) == [{"epoch": 0}]


@pytest.mark.parametrize("terms", [1, 2, 5])
def test_plot(tmp_path: Path, terms: int) -> None:
    values = {f"term{i}": float(i) for i in range(terms)}
    records = [{"epoch": e, "train": values, "validation": values} for e in range(3)]
    plot_terms(records, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
