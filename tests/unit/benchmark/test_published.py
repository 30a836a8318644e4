import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from nnunet_topomae.benchmark.recipes import RECIPES
from nnunet_topomae.benchmark.results import Cost, Results, Row, Table
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.plans.preset import preset_names
from nnunet_topomae.reports.formats import latex, markdown, published_notes

PUBLISHED = json.loads((files("nnunet_topomae.reports") / "published.json").read_text(encoding="utf-8"))
DATASETS = sorted(set(PUBLISHED) - {"source"})


def _results(preset: str) -> Results:
    """A report in which UNETR++ was trained."""
    mean = {
        "dice": 0.8,
        "hd95": 5.0,
        "paper_hd95": 3.0,
        "nsd": 0.9,
        "missed": 0.0,
        "volume_error": 1.0,
        "spurious": 0.0,
    }
    row = Row(
        {"organ": mean},
        mean,
        {"dice": 0.01},
        0.02,
        1,
        {},
        1_000_000,
        1e9,
        Cost(1.0, 0.0, 2.0, 1.0, None, None, None, None, 1e9),
    )
    table = Table(f"Dataset001_{preset}", 1.0, {"unetrpp": row}, [], [], {}, [], 0, 1, {}, PUBLISHED[preset])
    spec = BenchmarkSpec("test", Path(), (1,), (RECIPES["unetrpp"],), ("unetrpp",), folds=(0,), device="cpu")
    return Results(spec, [table], [], PUBLISHED["source"], {"processor": "any", "cores": "1"}, {})


def test_every_preset_has_published_numbers() -> None:
    assert preset_names() == DATASETS
    rows = {dataset: len(PUBLISHED[dataset]) for dataset in DATASETS}
    assert rows == {"acdc": 5, "btcv": 7, "msd_lung": 7, "msd_spleen": 6, "synapse": 13}


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_second_entry_agrees(dataset: str) -> None:
    """Dice, HD95 and, where the paper's average is not the mean of its columns, that mean.

    The second file was entered from a summary of the paper, not from the paper: it finds slips of typing, not errors
    that the summary shares.
    """
    second = json.loads((Path(__file__).parent / "published_second_entry.json").read_text(encoding="utf-8"))[dataset]
    first = {row["system"]: row for row in PUBLISHED[dataset]}
    assert set(second) == set(first)
    for system, (dice, hd95, *mean) in second.items():
        assert (first[system]["dice"], first[system]["hd95"]) == (dice, hd95), system
        note = f"the mean of the paper's own columns is {mean[0]:.2f}" if mean else None
        assert first[system].get("note") == note, system


@pytest.mark.parametrize("dataset", DATASETS)
def test_rows_are_in_percent_and_in_order(dataset: str) -> None:
    rows = PUBLISHED[dataset]
    assert len({row["system"] for row in rows}) == len(rows)
    assert rows == sorted(rows, key=lambda row: -row["dice"])
    assert all(70 < row["dice"] < 100 for row in rows)
    assert all(row["hd95"] is None or 0.5 < row["hd95"] < 50 for row in rows)
    # HD95 is published for two of the data sets, there for every system but one.
    assert sum(row["hd95"] is None for row in rows) == {"synapse": 1, "msd_spleen": 0}.get(dataset, len(rows))


def test_recipes_name_rows_that_exist() -> None:
    systems = {row["system"] for dataset in DATASETS for row in PUBLISHED[dataset]}
    assert {recipe.paper_row for recipe in RECIPES.values() if recipe.paper_row} <= systems
    for recipe, datasets in (("unetr", DATASETS), ("unetr-mae", sorted({*DATASETS} - {"btcv"}))):
        assert [name for name in DATASETS if _row(name, RECIPES[recipe].paper_row)] == datasets


def _row(dataset: str, system: str | None) -> dict[str, Any] | None:
    return next((row for row in PUBLISHED[dataset] if row["system"] == system), None)


@pytest.mark.parametrize("dataset", DATASETS)
def test_notes_tell_another_average(dataset: str) -> None:
    for row in PUBLISHED[dataset]:
        if note := row.get("note"):
            other = float(note.rpartition(" ")[2])
            assert 0.1 < row["dice"] - other < 0.5


def test_an_average_that_does_not_fit_is_marked_in_every_format() -> None:
    results = _results("btcv")
    (table,) = results.tables
    assert len(published_notes(table)) == 3
    text = markdown(results, {})
    assert "| UNETR++ | UNETR++ from scratch | 83.28\\* | 80.00 | – | 3.00 |" in text
    assert "| UNETR | – | 76.00 | – | – | – |" in text
    assert "\\* UNETR++: the mean of the paper's own columns is 82.84." in text
    tex = latex(results)
    assert "Method & Dice (\\%) & HD95 (voxels) & organ" in tex and "from scratch & 80.00 $\\pm$ 1.00 & 3.00" in tex
    assert "UNETR++ (published) & 83.28$^*$ & – & – \\\\" in tex
    assert "\\multicolumn{4}{l}{\\footnotesize * nnU-Net: the mean of the paper's own columns is 83.00.} \\\\" in tex


def test_no_note_no_mark() -> None:
    results = _results("acdc")
    assert published_notes(results.tables[0]) == []
    assert "\\*" not in markdown(results, {})
    assert "$^*$" not in latex(results)
