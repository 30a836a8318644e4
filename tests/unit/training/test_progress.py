"""What a training tells while it runs."""

import io
import sys

import pytest

from nnunet_topomae.config import PretrainingConfig
from nnunet_topomae.training.progress import describe_progress, describe_terms, epoch_bar


def test_the_log_says_how_far_a_training_is_and_how_long_it_will_take() -> None:
    records = [{"epoch": epoch, "seconds": 1000.0 if epoch == 0 else 60.0} for epoch in range(12)]
    assert describe_progress(records[:1], 200) == "1 of 200 epochs done, this one in 1000.0 s, about 2.3 d left"
    # The first epoch, which waits for the data, no longer counts.
    assert describe_progress(records, 72) == "12 of 72 epochs done, this one in 60.0 s, about 60.0 min left"
    assert describe_progress(records, 12) == "12 of 12 epochs done, this one in 60.0 s"


def test_all_terms_of_an_epoch_are_in_one_line() -> None:
    terms = {"train": {"mse_vit": 0.25, "total": 0.5}, "validation": {"total": 0.75, "topo_vit": 2.0}}
    assert describe_terms(terms) == (
        "loss terms (on the fixed crops of monitoring): total 0.5000 (0.7500), mse_vit 0.2500, topo_vit - (2.0000)"
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_in_a_terminal_by_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert epoch_bar(4, 11, first_process=False) is None and terminal.getvalue() == ""
    bar = epoch_bar(4, 11, first_process=True)
    bar.update()
    bar.close()
    assert "epoch 12" in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert epoch_bar(4, 0, first_process=True) is None


def test_pictures_are_due_every_few_epochs_and_not_at_the_end() -> None:
    config = PretrainingConfig(epochs=40, preview_every=10)
    assert [epoch for epoch in range(1, 41) if config.previews_after(epoch)] == [10, 20, 30]
    assert not any(PretrainingConfig(epochs=40, preview_every=0).previews_after(epoch) for epoch in range(1, 41))
