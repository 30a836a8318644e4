"""The page of one training: what it says of runs that go on, have ended, or have hardly begun."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nnunet_topomae.cli import main
from nnunet_topomae.reports.run import read_run
from nnunet_topomae.reports.training_panels import pretraining_panel
from nnunet_topomae.training.record import add_facts

PRETRAINING = {"total": 0.5, "mse_vit": 0.25}
SUPERVISED = {"train": {"loss": -0.25}, "validation": {"loss": -0.125, "pseudo_dice": 0.75}}


def _fold(folder: Path, trainer: str, epochs: int, wanted: int, terms: dict[str, Any], final: bool = False) -> Path:
    fold = folder / "Dataset007_<b>Tiny" / f"{trainer}__Plans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    (fold / "training_log_2026.txt").touch()
    records = [{"epoch": e, "seconds": 90.0, "learning_rate": 1e-3, **terms} for e in range(epochs)]
    (fold / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (fold / "debug.json").write_text(json.dumps({"num_epochs": str(wanted)}))
    add_facts(fold, {"parameters": 6.5e6, "macs": 2.5e9, "steps": wanted * 25, "crops_per_step": 2})
    if final:
        (fold / "checkpoint_final.pth").touch()
    return fold


class _Page(HTMLParser):
    """Text, and what the page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        assert tag not in ("b", "script", "link")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_pre_training_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    terms = {"train": PRETRAINING, "validation": PRETRAINING, "skipped_steps": 3}
    terms |= {"gradient_shares": {"vit": {"mse_vit": 0.9, "topo_vit": 0.1}}, "probe": {"vit": 0.5, "seconds": 1.0}}
    fold = _fold(tmp_path, "TopoMAEPretrainer", 2, 10, terms)
    newest = fold / "monitoring" / "epoch_2"
    newest.mkdir(parents=True)
    metrics = {"mse": 0.25, "psnr": 21.5, "ssim": 0.875, "key_point_error_mm": 3.5}
    (newest / "summary.json").write_text(json.dumps({"reconstruction": {"mean": {"vit": metrics}, "cases": {}}}))
    assert main(["report", str(fold), "-o", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    page = _Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.words).split())
    assert "TopoMAEPretrainer on Dataset007_<b>Tiny, fold 0" in text
    assert "2 of 10 epochs with 25 steps each done, about 12.0 min left at the pace of the last one." in text
    for part in ("6.50 million", "2.5 billion", "skipped steps 3", "After 2 epochs, the networks rebuild", "21.50"):
        assert part in text
    assert "--embed-images" in text and not (fold / "report.html").exists()
    assert len(page.sources) == 2 and all(source.startswith("data:image/") for source in page.sources)


@pytest.mark.parametrize(
    ("metric", "said", "unsaid"),
    [
        ("key_point_error_mm", ("under a fixed mask. Only hidden", "key-point error, mm", " 0.4"), "corrupted"),
        ("boundary_error", ("from a corrupted copy. All voxels", "boundary error, 0 to 1", " 0.375"), "key-point"),
    ],
)
def test_what_was_rebuilt_is_said(tmp_path: Path, metric: str, said: tuple[str, ...], unsaid: str) -> None:
    fold = _fold(tmp_path, "VectorPOSEPretrainer", 1, 1, {"train": {"total": 1.0}, "validation": {}}, final=True)
    (fold / "validation").mkdir()
    mean = {"partner": {"mse": 0.25, "psnr": 21.5, "ssim": 0.875, metric: 0.375}}
    (fold / "validation" / "summary.json").write_text(json.dumps({"reconstruction": {"mean": mean, "cases": {}}}))
    assert main(["report", str(fold)]) == 0
    text = " ".join(" ".join(_Page((fold / "report.html").read_text(encoding="utf-8")).words).split())
    assert all(words in text for words in said) and unsaid not in text


def test_the_page_says_how_well_the_networks_know_where_crops_were_taken(tmp_path: Path) -> None:
    fold = _fold(tmp_path, "VectorPOSEPretrainer", 1, 1, {"train": {"total": 1.0}, "validation": {}}, final=True)
    (fold / "validation").mkdir()
    errors = {"partner": {"mm": 60.0, "degrees": 30.0}, "mean_answer": {"mm": 55.0, "degrees": 30.0}, "crops": 150}
    (fold / "validation" / "summary.json").write_text(json.dumps({"spatial": {"vectors": errors}}))
    assert main(["report", str(fold)]) == 0
    text = " ".join(" ".join(_Page((fold / "report.html").read_text(encoding="utf-8")).words).split())
    assert (
        "Where crops were taken: vectors of 150 random crops of training cases: partner 60.0 mm and 30 degrees off; "
        "always the mean: 55.0 mm and 30 degrees. The partner did not learn them." in text
    )


def test_a_supervised_training_that_has_ended(tmp_path: Path) -> None:
    fold = _fold(tmp_path, "TopoMAEFusionTrainer", 2, 10, SUPERVISED, final=True)
    add_facts(fold, {"ended_early": {"epochs": 2, "reason": "somebody has asked"}})
    (fold / "validation").mkdir()
    mean = {"1": {"Dice": 0.875}, "(1, 2)": {"Dice": 0.625}, "3": {"Dice": None}}
    summary = {"foreground_mean": {"Dice": 0.75}, "mean": mean}
    (fold / "validation" / "summary.json").write_text(json.dumps(summary))
    (fold.parent / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "organ": 1, "whole": [1, 2]}}))
    run = read_run(fold)
    assert run.state == "Ended after 2 epochs: somebody has asked." and run.panel is None and run.measured is None
    assert run.scores == {"organ": 0.875, "whole": 0.625, "label 3": None, "mean": 0.75}
    assert main(["report", str(fold)]) == 0
    assert "0.8750" in (fold / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("epochs", "wanted", "final", "state"),
    [
        (0, 10, False, "No epoch is recorded yet."),
        (0, 10, True, "Finished."),
        (10, 10, True, "Finished, 10 epochs."),
        (4, 10, True, "4 of 10 epochs with 25 steps each done, about 9.0 min left at the pace of the last one."),
    ],
)
def test_how_far_a_training_is(tmp_path: Path, epochs: int, wanted: int, final: bool, state: str) -> None:
    """A final checkpoint of an older training does not finish the one that runs in its folder."""
    fold = _fold(tmp_path, "UNETRPPTrainer", epochs, wanted, SUPERVISED, final)
    run = read_run(fold)
    assert run.state == state and (run.curves is None) == (epochs == 0)


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "SeededNNUNetTrainer"])
def test_without_our_record_nnunets_own_plot_is_shown(tmp_path: Path, trainer: str, final: bool) -> None:
    fold = _fold(tmp_path, trainer, 0, 10, SUPERVISED, final)
    (fold / "debug.json").unlink()
    (fold / "progress.png").write_bytes(b"png")
    run = read_run(fold)
    assert run.curves is not None and run.curves.source.startswith("data:image/png")
    words = "This trainer keeps no record of its epochs; nnU-Net's own plot is below."
    assert run.state == (f"Finished. {words}" if final else words)


def test_the_newest_reconstructions_are_shown(tmp_path: Path) -> None:
    for name in ("epoch_50", "epoch_100"):
        (tmp_path / "monitoring" / name).mkdir(parents=True)
    assert pretraining_panel("a", tmp_path, images=True, diagrams=True).moment == "After 100 epochs"
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "summary.json").write_text("{}")
    assert pretraining_panel("a", tmp_path, images=True, diagrams=True).moment == "After pre-training"
