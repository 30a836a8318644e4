"""From scores to tables: means over cases, folds and seeds, and what is not known."""

from dataclasses import replace

import numpy as np
import pytest

from nnunet_topomae.benchmark.collect import Entry, collect
from nnunet_topomae.benchmark.jobs import Job, make_jobs
from nnunet_topomae.benchmark.spec import read_spec
from nnunet_topomae.benchmark.store import JobFolder
from nnunet_topomae.benchmark.tables import build_results, case_table, summarise_recipe
from nnunet_topomae.evaluation.metrics import StructureScore
from nnunet_topomae.reports.formats import scores_csv

NAN = float("nan")
COST = {"seconds": 3600.0, "cpu_seconds": 7200.0, "peak_process_bytes": 5.0}


def entry(fold, seed, scores, gpu_bytes=None):
    job = Job("train", "any", "Dataset005_Five", {}, recipe="mine", fold=fold, seed=seed)
    typed = {
        case: {name: StructureScore(dice, hd95) for name, (dice, hd95) in of.items()} for case, of in scores.items()
    }
    return Entry(job, job, typed, 12, None, gpu_bytes, COST, None)


@pytest.fixture
def entries():
    """Held-out cases, predicted by two folds with two seeds each; `b` rightly lacks the second structure."""
    return [
        entry(
            fold, seed, {"b": {"x": (0.6 + dice, 4.0), "y": (NAN, NAN)}, "a": {"x": (0.5 + dice, 2.0), "y": (1.0, 0.0)}}
        )
        for fold, seed, dice in ((0, 0, 0.0), (1, 0, 0.2), (0, 1, 0.1), (1, 1, 0.3))
    ]


def test_a_case_is_averaged_over_structures_and_folds(entries):
    cases, table = case_table(entries, "dice")
    assert cases == ["a", "b"]
    # Rows are cases, columns are seeds; what is rightly absent counts as perfect.
    np.testing.assert_allclose(table, [[(0.6 + 1) / 2, (0.7 + 1) / 2], [(0.7 + 1) / 2, (0.8 + 1) / 2]])
    np.testing.assert_allclose(case_table(entries, "hd95")[1], [[1.0, 1.0], [2.0, 2.0]])


def test_means_leave_out_what_is_not_defined(entries):
    row = summarise_recipe(entries)
    assert row.structures["x"]["dice"] == pytest.approx(np.mean([0.65, 0.75]))
    assert row.structures["y"]["dice"] == 1.0
    assert row.mean["dice"] == pytest.approx((0.7 + 1.0) / 2)
    assert row.seed_sd["dice"] == pytest.approx(np.std([0.825, 0.875], ddof=1))
    assert np.isnan(row.mean["nsd"])
    assert row.by_case["a"]["x"]["dice"] == pytest.approx(0.65) and np.isnan(row.by_case["b"]["y"]["hd95"])
    assert (row.cases, row.parameters, row.macs) == (2, 12, None)
    assert (row.cost.hours, row.cost.cpu_hours, row.cost.gpu_bytes) == (1.0, 2.0, None)
    assert summarise_recipe(entries[:1]).seed_sd["dice"] is None


def test_the_largest_gpu_memory_counts(entries):
    some = [replace(entries[0], gpu_bytes=2.0), replace(entries[1], gpu_bytes=3.0), *entries[2:]]
    assert summarise_recipe(some).cost.gpu_bytes == 3.0


def test_csv_has_one_line_per_structure_and_leaves_undefined_cells_empty(entries):
    lines = scores_csv(entries[:1]).splitlines()
    assert len(lines) == 1 + 2 * 2
    assert lines[2] == "Dataset005_Five,mine,1.0,0,0,b,y,,,,,,False,False,,,"


def test_costs_come_from_the_trainings_record(finished_demo):
    spec = read_spec(finished_demo)
    jobs = make_jobs(spec)
    full, scratch = collect(spec, jobs)
    assert (full.job.recipe, scratch.job.recipe) == ("full", "unetrpp")
    assert (full.parameters, full.macs, full.gpu_bytes) == (1_500_000, 2.5e9, 3e9)  # memory: of the pre-training
    assert scratch.gpu_bytes == 2e9 and scratch.pretraining is None
    assert full.predicted.kind == "predict" and full.scores["phantom_test_000"]["ring"].dice == 1.0


def test_a_training_without_a_record_has_unknown_costs(finished_demo):
    spec = read_spec(finished_demo)
    jobs = make_jobs(spec)
    file = JobFolder.of(next(job for job in jobs if (job.kind, job.recipe) == ("train", "unetrpp")), spec).fold
    record = (file / "training.json").read_text()
    (file / "training.json").unlink()
    try:
        _, scratch = collect(spec, jobs)
    finally:
        (file / "training.json").write_text(record)
    assert (scratch.macs, scratch.gpu_bytes) == (None, None)


def test_unfinished_recipes_are_named_and_left_out(finished_demo, tmp_path):
    spec = read_spec(finished_demo)
    jobs = make_jobs(spec)
    (table,) = build_results(spec, jobs, collect(spec, jobs)[:1]).tables
    assert (list(table.rows), list(table.incomplete)) == (["full"], ["unetrpp"])
    assert table.comparisons == {}
    nowhere = replace(spec, out=tmp_path)
    with pytest.raises(ValueError, match="2 of 2 scores are missing"):
        collect(nowhere, jobs, partial=True)
