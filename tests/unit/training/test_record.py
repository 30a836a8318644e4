from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from nnunet_topomae.training.devices import record_gpu_memory
from nnunet_topomae.training.plots import plot_terms
from nnunet_topomae.training.record import METRICS_FILE, add_facts, average_terms, read_epochs, read_facts, write_epoch


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


@pytest.mark.parametrize("terms", [1, *(pytest.param(terms, marks=pytest.mark.slow) for terms in (2, 5))])
def test_plot(tmp_path: Path, terms: int) -> None:
    values = {f"term{i}": float(i) for i in range(terms)}
    records = [{"epoch": e, "train": values, "validation": values} for e in range(3)]
    plot_terms(records, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_is_whole_or_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages read it while a training runs."""
    (tmp_path / "p.png").write_bytes(b"before")

    def cut_off(_figure: Figure, target: Any, **_options: Any) -> None:
        (target.write if hasattr(target, "write") else target.write_bytes)(b"half of")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", cut_off)
    records = [{"epoch": 0, "train": {"a": 1.0}, "validation": {"a": 1.0}}]
    with pytest.raises(KeyboardInterrupt):
        plot_terms(records, tmp_path / "p.png")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("p.png", b"before")]


def test_gpu_memory_is_recorded_by_the_first_process_of_a_gpu_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Trainer:
        def __init__(self, device: str, rank: int) -> None:
            self.device, self.local_rank, self.lines = torch.device(device), rank, list[str]()
            self.output_folder = str(tmp_path / f"{device}{rank}")
            Path(self.output_folder).mkdir()

        def print_to_log_file(self, line: str) -> None:
            self.lines.append(line)

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3_210_000_000)
    trainers = [Trainer("cpu", 0), Trainer("cuda", 1), Trainer("cuda", 0)]
    for trainer in trainers:
        record_gpu_memory(trainer)
    assert [trainer.lines for trainer in trainers] == [[], [], ["peak GPU memory 3.21 GB"]]
    facts = [read_facts(Path(trainer.output_folder)) for trainer in trainers]
    assert facts == [{}, {}, {"peak_gpu_bytes": 3_210_000_000}]


def test_facts_are_kept_and_replaced_by_key(tmp_path: Path) -> None:
    assert read_facts(tmp_path) == {}
    add_facts(tmp_path, {"parameters": 3, "macs": 2.5e9})
    add_facts(tmp_path, {"macs": 3e9, "peak_gpu_bytes": 7})
    assert read_facts(tmp_path) == {"parameters": 3, "macs": 3e9, "peak_gpu_bytes": 7}
