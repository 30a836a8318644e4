"""From scores to tables: means over cases, folds and seeds, and what is not known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnunet_topomae.benchmark import tables
from nnunet_topomae.benchmark.collect import Entry, collect
from nnunet_topomae.benchmark.compared import COMPARED
from nnunet_topomae.benchmark.contrasts import (
    CaseTable,
    case_table,
    compared_metrics,
    correct_together,
    make_contrasts,
    make_design,
)
from nnunet_topomae.benchmark.exchange import read_known
from nnunet_topomae.benchmark.jobs import Job, make_jobs
from nnunet_topomae.benchmark.primary import Primary
from nnunet_topomae.benchmark.recipes import RECIPES
from nnunet_topomae.benchmark.results import Amount, Table
from nnunet_topomae.benchmark.spec import BenchmarkSpec, read_spec
from nnunet_topomae.benchmark.store import JobFolder
from nnunet_topomae.benchmark.tables import _machines, _table, build_results, summarise_recipe
from nnunet_topomae.evaluation.metrics import StructureScore
from nnunet_topomae.evaluation.nested import Design
from nnunet_topomae.evaluation.statistics import compare, holm
from nnunet_topomae.reports.formats import scores_csv
from nnunet_topomae.training.record import add_facts

NAN = float("nan")
COST = {"seconds": 3600.0, "cpu_seconds": 7200.0, "peak_process_bytes": 5.0}


def entry(fold, seed, scores, gpu_bytes=None):
    job = Job("train", "any", "Dataset005_Five", {}, recipe="mine", fold=fold, seed=seed)
    typed = {
        case: {name: StructureScore(dice, hd95) for name, (dice, hd95) in of.items()} for case, of in scores.items()
    }
    return Entry(job, job, typed, 12, None, gpu_bytes, None, 0, None, COST, None)


@pytest.fixture
def entries():
    """Held-out cases, predicted by two folds with two seeds each; `b` rightly lacks the second structure."""
    return [
        entry(
            fold, seed, {"b": {"x": (0.6 + dice, 4.0), "y": (NAN, NAN)}, "a": {"x": (0.5 + dice, 2.0), "y": (1.0, 0.0)}}
        )
        for fold, seed, dice in ((0, 0, 0.0), (1, 0, 0.2), (0, 1, 0.1), (1, 1, 0.3))
    ]


def test_held_out_cases_have_a_column_per_training(entries):
    found = case_table(entries, "dice", held_out=True)
    assert found.cases == ["a", "b"] and found.folds == [0, 0, 1, 1]
    # Columns are folds x seeds; what is rightly absent counts as perfect.
    np.testing.assert_allclose(found.scores, [[0.75, 0.8, 0.85, 0.9], [0.8, 0.85, 0.9, 0.95]])
    np.testing.assert_allclose(case_table(entries, "hd95", held_out=True).scores, [[1.0] * 4, [2.0] * 4])


def test_in_cross_validation_a_case_belongs_to_a_fold(tmp_path):
    """A case that two folds validate has two rows."""
    parts = [
        entry(fold, seed, {case: {"x": (fold + seed / 10, 1.0)} for case in of})
        for fold, of in ((0, "ca"), (1, "bc"))
        for seed in (0, 1)
    ]
    found = case_table(parts, "dice", held_out=False)
    assert (found.cases, found.folds) == (["a", "b", "c", "c"], [0, 1, 0, 1])
    np.testing.assert_allclose(found.scores, [[0.0, 0.1], [1.0, 1.1], [0.0, 0.1], [1.0, 1.1]])
    spec = make_spec(raw=tmp_path, settings={"pretraining.patients": "(.)"})
    design = make_design(spec, "Dataset005_Five", found, 0.5)
    assert (design.case_folds, design.patients, design.paired) == ([0, 1, 0, 1], ["a", "b", "c", "c"], True)
    assert not make_design(spec, "Dataset005_Five", found, 1.0).paired


def test_scans_of_a_patient_are_known_from_the_data_set(tmp_path):
    """`patients.json`, as converters write it, holds in the statistics as in training."""
    found = CaseTable(["a_1", "a_2", "b_1"], [0, 0, 1], np.zeros((3, 2)))
    spec, name = make_spec(raw=tmp_path), "Dataset005_Five"
    assert make_design(spec, name, found, 1.0).patients == ["a_1", "a_2", "b_1"]
    (tmp_path / name).mkdir()
    table = tmp_path / name / "patients.json"
    table.write_text('{"a_1": "a", "a_2": "a", "b_1": "b"}')
    assert make_design(spec, name, found, 1.0).patients == ["a", "a", "b"]
    # A rule in the file goes before it.
    own = replace(spec, settings={"pretraining.patients": ".*_(.)"})
    assert make_design(own, name, found, 1.0).patients == ["1", "2", "1"]
    # The table lists training cases; a held-out case that it lacks is a patient of its own.
    table.write_text('{"a_1": "a", "a_2": "a"}')
    assert make_design(replace(spec, held_out=True), name, found, 1.0).patients == ["a", "a", "b_1"]
    with pytest.raises(ValueError, match="has no patient for case b_1"):
        make_design(spec, name, found, 1.0)


def make_spec(**values):
    recipes = tuple(replace(RECIPES["full"], name=name) for name in "wxyz")
    return BenchmarkSpec("b", Path(), (5,), recipes, ("x",), **values)


def test_no_pair_is_compared_twice_and_the_primary_one_keeps_its_direction():
    generator = np.random.default_rng(0)
    scores = {name: generator.random((12, 2)) for name in "wxyz"}
    spec = replace(make_spec(primary=Primary("x", "z", "dice")), baselines=("x", "y"))
    found = make_contrasts(spec, "dice", scores, Design(), 1.0)
    assert [(one.recipe, one.baseline, one.primary) for one in found] == [
        ("x", "z", True),
        ("w", "x", False),
        ("y", "x", False),
        ("w", "y", False),
        ("z", "y", False),
    ]
    assert found[0].found.difference == pytest.approx((scores["x"] - scores["z"]).mean())
    others = make_contrasts(spec, "hd95", scores, Design(), 1.0)
    assert len(others) == 5 and not any(one.primary for one in others)
    del scores["z"]
    assert len(make_contrasts(spec, "dice", scores, Design(), 1.0)) == 3


def test_exploratory_comparisons_are_one_family_and_the_primary_one_is_not_in_it():
    generator = np.random.default_rng(0)
    scores = {name: generator.random((12, 2)) + 0.3 * (name == "y") for name in "wxyz"}
    spec = make_spec(primary=Primary("y", "x", "dice"))
    (table,) = correct_together([compared_table(spec, scores)], spec)
    (primary,) = (one.found for one in table.contrasts if one.primary)
    family = [one.found for one in table.contrasts if not one.primary]
    assert primary.adjusted_p == primary.p and len(family) == 3 * 3 - 1
    assert [found.adjusted_p for found in family] == pytest.approx(holm([found.p for found in family]))


def test_what_the_primary_comparison_could_show_is_corrected_for_the_data_sets():
    generator = np.random.default_rng(0)
    scores = {name: generator.random((12, 2)) for name in "wxyz"}
    spec = make_spec(primary=Primary("y", "x", "dice"))
    one, two = (
        make_contrasts(replace(spec, datasets=datasets), "dice", scores, Design(), 1.0) for datasets in ((5,), (5, 6))
    )
    level = compare({"x": scores["x"], "y": scores["y"]}, "x", Design(), level=0.025)["y"]
    assert two[0].primary and (two[0].found.detectable, two[0].found.least_shown) == (
        level.detectable,
        level.least_shown,
    )
    assert one[0].found.least_shown == pytest.approx((level.high - level.low) / 2) and level.least_shown > 0
    assert [other.found.least_shown for other in one[1:]] == [other.found.least_shown for other in two[1:]]


def test_comparisons_that_cannot_be_made_yet_count_as_tests():
    """So that no difference of a partial report is lost because the benchmark goes on."""
    generator = np.random.default_rng(0)
    scores = {name: generator.normal(0.5, 0.02, (12, 5)) + 0.3 * (name == "y") for name in "wxyz"}
    spec = replace(make_spec(primary=Primary("y", "x", "dice")), baselines=("x", "z"), label_fractions=(1.0, 0.1))
    whole = [compared_table(spec, scores, 1.0), compared_table(spec, scores, 0.1)]
    first = [compared_table(spec, {name: scores[name] for name in "yz"}, 1.0)]
    p_values = [one.found.p for one in first[0].contrasts]
    assert len(p_values) == 3 and 29 * max(p_values) < 1 and sum(len(table.contrasts) for table in whole) == 30
    adjusted = {
        len(tables): {
            (one.metric, one.recipe, one.baseline): one.found.adjusted_p
            for table in correct_together(tables, spec)[:1]
            for one in table.contrasts
        }
        for tables in (first, whole)
    }
    # 5 pairs, 3 metrics, 2 fractions; one of these 30 comparisons is the primary one.
    assert list(adjusted[1].values()) == pytest.approx(holm([*p_values, *[1.0] * (29 - 3)])[:3])
    assert all(adjusted[2][key] <= value for key, value in adjusted[1].items())


def compared_table(spec, scores, fraction=1.0):
    """A table of the same scores by every metric, not corrected yet."""
    contrasts = [
        one for metric in compared_metrics(spec) for one in make_contrasts(spec, metric, scores, Design(), fraction)
    ]
    return Table("D", fraction, {}, [], contrasts, {}, [], 12, 2, {}, [])


def test_betti_errors_are_compared_where_they_are_measured():
    assert compared_metrics(make_spec()) == ["dice", "hd95", "nsd"]
    assert compared_metrics(make_spec(betti=True)) == list(COMPARED)


def test_means_leave_out_what_is_not_defined(entries):
    row = summarise_recipe(entries, True)
    assert row.structures["x"]["dice"] == pytest.approx(np.mean([0.65, 0.75]))
    assert row.structures["y"]["dice"] == 1.0
    assert row.mean["dice"] == pytest.approx((0.7 + 1.0) / 2)
    assert row.seed_sd["dice"] == pytest.approx(np.std([0.825, 0.875], ddof=1))
    # In both folds the three defined values differ by 0.1 in two of three places from seed to seed.
    assert row.training_sd == pytest.approx(np.std([0.0, 0.2 / 3], ddof=1))
    assert np.isnan(row.mean["nsd"])
    assert row.by_case["a"]["x"]["dice"] == pytest.approx(0.65) and np.isnan(row.by_case["b"]["y"]["hd95"])
    assert (row.cases, row.parameters, row.macs) == (2, 12, None)
    assert (row.cost.hours, row.cost.cpu_hours, row.cost.gpu_bytes) == (1.0, 2.0, None)
    alone = summarise_recipe(entries[:1], True)
    assert (alone.seed_sd["dice"], alone.training_sd) == (None, None)
    both = [replace(entries[0], pretraining={**COST, "attempts": 3}), replace(entries[1], pretraining=COST)]
    cost = summarise_recipe(both, True).cost
    assert (cost.hours, cost.pretraining_hours, cost.attempts) == (2.0, 1.0, 3.0)  # attempts: 1 + 3 and 1 + 1


def test_the_largest_gpu_memory_counts(entries):
    some = [replace(entries[0], gpu_bytes=2.0), replace(entries[1], gpu_bytes=3.0), *entries[2:]]
    assert summarise_recipe(some, True).cost.gpu_bytes == 3.0


def test_steps_and_operations_are_means_over_the_trainings(entries):
    """A control of equal time has a length of its own in every fold and seed."""
    lengths = (300, 340, 360, 400)
    some = [
        replace(one, steps=steps, total_macs=steps * 2.0, ended_early=["a"] * (steps == 300))
        for one, steps in zip(entries, lengths, strict=True)
    ]
    row = summarise_recipe(some, True)
    assert (row.cost.steps, row.cost.pretraining_steps) == (Amount(350.0, 300.0, 400.0), Amount(0.0, 0.0, 0.0))
    assert row.cost.total_macs == Amount(700.0, 600.0, 800.0) and list(row.ended_early) == ["a"]
    # One training that does not say it.
    row = summarise_recipe([*some[:3], entries[3]], True)
    assert row.cost.steps is None and row.cost.total_macs is None


def test_time_of_processors_that_was_not_recorded_is_not_known(entries):
    unknown = replace(entries[0], training={**COST, "cpu_seconds": 0.0})
    assert summarise_recipe([unknown, *entries[1:]], True).cost.cpu_hours is None


def test_held_out_cases_are_counted_once_and_not_once_per_fold():
    """One of two structures is always missed in both cases: by five folds and two seeds, too."""
    entries = [
        entry(fold, seed, {case: {"x": (0.0, 9.0), "y": (1.0, 0.0)} for case in "ab"})
        for fold in range(5)
        for seed in (0, 1)
    ]
    entries = [
        replace(one, scores={case: {**of, "x": replace(of["x"], missed=True)} for case, of in one.scores.items()})
        for one in entries
    ]
    row = summarise_recipe(entries, held_out=True)
    assert (row.mean["missed"], row.structures["x"]["missed"], row.structures["y"]["missed"]) == (2.0, 2.0, 0.0)
    # In cross-validation, every fold has cases of its own.
    assert summarise_recipe(entries[:4], held_out=False).mean["missed"] == 4.0


def test_a_structure_that_is_absent_in_one_training_only_is_noted(entries):
    """The mean over seeds is defined where one training predicts what is not there."""
    present = [entry(0, 0, {"a": {"x": (0.0, 9.0)}}), entry(0, 1, {"a": {"x": (NAN, NAN)}})]
    row = summarise_recipe(present, False)
    assert row.by_case["a"]["x"]["dice"] == 0.0 and row.has_absent
    assert not summarise_recipe(present[:1], False).has_absent


def test_machines_are_those_of_the_trainings(entries):
    def on(system, cores):
        return {**COST, "provenance": {"machine": {"system": system, "processor": "any", "cores": cores}}}

    some = [replace(entries[0], training=on("a", "2"), pretraining=on("b", "2")), entries[1]]
    assert _machines(some) == ["processor any, cores 2"]
    assert _machines([*some, replace(entries[2], training=on("a", "8"))]) == [
        "processor any, cores 2",
        "processor any, cores 8",
    ]


def test_errors_of_the_volume_do_not_cancel():
    scores = [entry(0, 0, {case: {"x": (0.5, 1.0)} for case in "ab"})]
    sized = {
        case: {"x": replace(of["x"], volume_error=error)}
        for (case, of), error in zip(scores[0].scores.items(), (3.0, -3.0), strict=True)
    }
    mean = summarise_recipe([replace(scores[0], scores=sized)], False).mean
    assert (mean["volume_error"], mean["absolute_volume_error"]) == (0.0, 3.0)


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
    assert (full.pretraining_steps, full.steps, full.total_macs) == (100, 40, 100 * 2 * 9e9 + 40 * 3 * 2.5e9)
    assert (scratch.pretraining_steps, scratch.steps, scratch.total_macs) == (0, 40, 40 * 3 * 2.5e9)
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
    assert (scratch.macs, scratch.gpu_bytes, scratch.steps, scratch.total_macs) == (None, None, None, None)


@pytest.mark.parametrize("kind", ["train", "pretrain"])
def test_a_score_without_the_record_of_its_training_is_missing(finished_demo, kind):
    spec = read_spec(finished_demo)
    jobs = make_jobs(spec)
    training = next(job for job in jobs if (job.kind, job.recipe) == (kind, "full"))
    file = JobFolder.of(training, spec).path / "done.json"
    record = file.read_text()
    file.unlink()
    try:
        with pytest.raises(ValueError, match="1 of 2 scores are missing: .*full"):
            collect(spec, jobs)
        found = collect(spec, jobs, partial=True)
    finally:
        file.write_text(record)
    assert [entry.job.recipe for entry in found] == ["unetrpp"]


def test_a_training_that_ended_early_is_named(finished_demo):
    spec = read_spec(finished_demo)
    jobs = make_jobs(spec)
    job = next(job for job in jobs if (job.kind, job.recipe) == ("train", "unetrpp"))
    file = JobFolder.of(job, spec).fold / "training.json"
    record = file.read_text()
    add_facts(file.parent, {"ended_early": {"epochs": 3, "reason": "somebody has asked"}})
    try:
        full, scratch = collect(spec, jobs)
    finally:
        file.write_text(record)
    assert full.ended_early == []
    assert scratch.ended_early == [f"{job.name} after 3 epochs (somebody has asked)"]


def test_unfinished_recipes_are_named_and_left_out(finished_demo, tmp_path):
    spec = read_spec(finished_demo)
    jobs = make_jobs(spec)
    (table,) = build_results(spec, jobs, collect(spec, jobs)[:1]).tables
    assert (list(table.rows), list(table.incomplete)) == (["full"], ["unetrpp"])
    assert table.contrasts == [] and table.compared("dice", "unetrpp") == {}
    nowhere = replace(spec, out=tmp_path)
    with pytest.raises(ValueError, match="2 of 2 scores are missing"):
        collect(nowhere, jobs, partial=True)


def test_ranks_are_left_out_where_no_training_can_be_drawn_again(finished_demo):
    """Otherwise they would take the luck of single trainings for given."""
    spec = read_spec(finished_demo)
    entries = collect(spec, make_jobs(spec))
    dataset = entries[0].job.dataset
    assert _table(spec, dataset, 1.0, entries, []).ranks == {}
    again = [replace(one, job=replace(one.job, seed=spec.seeds[0] + 1)) for one in entries]
    twice = replace(spec, seeds=(spec.seeds[0], spec.seeds[0] + 1))
    ranks = _table(twice, dataset, 1.0, [*entries, *again], []).ranks
    assert set(ranks) == {"dice", "hd95", "nsd"} and ranks["dice"]["full"][0] == 1.0


def test_published_numbers_stand_beside_trainings_with_all_labels_only(finished_demo):
    spec = read_spec(finished_demo)
    jobs = make_jobs(spec)
    entries = collect(spec, jobs)
    few = [replace(one, job=replace(one.job, fraction=0.1)) for one in entries]
    spec = replace(spec, paper={str(spec.datasets[0]): "btcv"}, label_fractions=(1.0, 0.1))
    whole, part = build_results(spec, jobs, [*entries, *few]).tables
    assert (whole.fraction, part.fraction) == (1.0, 0.1) and set(part.rows) == set(whole.rows)
    assert len(whole.published) == 7 and list(part.published) == []


def test_a_comparison_that_was_stated_late_is_counted(finished_demo):
    """The trainings of the demo began without a primary comparison."""
    spec = read_spec(finished_demo)
    jobs = make_jobs(spec)
    entries = collect(spec, jobs)
    assert build_results(spec, jobs, entries).stated_late == {}
    now = replace(spec, primary=Primary("full", "unetrpp", "dice"), margin=0.02)
    found = build_results(now, jobs, entries)
    assert (found.stated_late, found.unrecorded) == ({"none": 2}, 0)
    # Where and with what it was made is what the jobs say, not this machine.
    found = build_results(spec, jobs, entries)
    assert found.machine == {"processor": "a quick one", "cores": "64"}
    assert found.versions == {"torch": "9.9", "commit": "not known"}
    # Scores of earlier versions tell it by the version of the package.
    made_with = {"commit": None, "versions": {"nnunet-topomae": "0.1.1.dev500+g37b41cace"}}
    assert tables._commit(made_with) == "37b41cace"


def test_trainings_that_began_with_other_seeds_or_on_several_machines_are_known(finished_demo, monkeypatch):
    spec = read_spec(finished_demo)
    jobs = make_jobs(spec)
    entries, known = collect(spec, jobs), read_known(spec, jobs)
    first, *_ = (known.done[job.fingerprint]["provenance"] for job in jobs if job.kind == "train")
    first["planned"] = {**spec.planned, "seeds": [0, 1]}
    first["later"] = [{**first, "machine": {"processor": "a slow one", "cores": "64"}}]
    monkeypatch.setattr("nnunet_topomae.benchmark.tables.read_known", lambda *_: known)
    found = build_results(spec, jobs, entries)
    assert (found.planned_otherwise, found.plan_unrecorded) == (1, 0)
    assert found.machine == {"processor": "a quick one; a slow one", "cores": "64"}


def test_trainings_of_which_seeds_and_folds_are_not_recorded_do_not_count_as_planned(finished_demo, monkeypatch):
    """Neither of two: an earlier version recorded the comparison only, a still earlier one nothing."""
    spec = read_spec(finished_demo)
    jobs = make_jobs(spec)
    entries, known = collect(spec, jobs), read_known(spec, jobs)
    first, second = (known.done[job.fingerprint] for job in jobs if job.kind == "train")
    del first["provenance"]["planned"], second["provenance"]
    monkeypatch.setattr("nnunet_topomae.benchmark.tables.read_known", lambda *_: known)
    found = build_results(replace(spec, primary=Primary("full", "unetrpp", "dice")), jobs, entries)
    assert (found.planned_otherwise, found.plan_unrecorded, found.unrecorded) == (0, 2, 1)


def test_a_version_that_did_not_record_the_comparison_is_not_said_to_have_named_another(finished_demo, monkeypatch):
    spec = read_spec(finished_demo)
    jobs = make_jobs(spec)
    entries, known = collect(spec, jobs), read_known(spec, jobs)
    for facts in known.done.values():
        del facts["provenance"]["primary"]
    monkeypatch.setattr("nnunet_topomae.benchmark.tables.read_known", lambda *_: known)
    now = replace(spec, primary=Primary("full", "unetrpp", "dice"))
    found = build_results(now, jobs, entries)
    assert (found.stated_late, found.unrecorded) == ({}, 2)
    assert build_results(spec, jobs, entries).unrecorded == 0
