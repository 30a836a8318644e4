"""What a report says about its comparisons."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from nnunet_topomae.benchmark.compared import COMPARED, Metric
from nnunet_topomae.benchmark.contrasts import compared_metrics, correct_together, make_contrasts
from nnunet_topomae.benchmark.primary import Primary, read_primary
from nnunet_topomae.benchmark.recipes import RECIPES
from nnunet_topomae.benchmark.results import Amount, Cost, JobRecord, Results, Row, Table
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.evaluation.nested import Design
from nnunet_topomae.reports import benchmark, statements
from nnunet_topomae.reports.formats import latex, markdown
from nnunet_topomae.reports.headline import headlines
from nnunet_topomae.reports.page import render
from nnunet_topomae.reports.statements import (
    caveats,
    cost_notes,
    exploratory_contrasts,
    multiply_adds,
    primary_statements,
    uncertainty,
)

NAMES = ("full", "fusion-scratch", "unetrpp")
FOLDS = [fold for fold in range(5) for _ in range(8)]
MEAN = {"dice": 0.8, "hd95": 5.0, "nsd": 0.9, "missed": 0.0, "betti_error": 1.25}
COST = Cost(
    1.5, 0.5, 2.0, 2.5, Amount(40.0, 40.0, 40.0), Amount(100.0, 100.0, 100.0), Amount(3e15, 3e15, 3e15), None, 1.0
)
ROW = Row({"organ": MEAN}, MEAN, {"dice": 0.01}, 0.02, 40, {}, 3, None, COST)


def make_results(metric="dice", **values):
    """A report of three recipes on 40 cases, of which the first is better by 0.05."""
    spec = BenchmarkSpec("test", Path(), (1,), tuple(RECIPES[name] for name in NAMES), ("unetrpp",), seeds=(0, 1))
    spec = replace(spec, **values)
    generator = np.random.default_rng(0)
    scores = {name: generator.normal(0.8, 0.02, (40, 2)) + 0.05 * (name == "full") for name in NAMES}
    contrasts = make_contrasts(spec, metric, scores, Design(case_folds=FOLDS), 1.0)
    listed = {"betti_error": {}} if spec.betti else {}
    table = Table(
        "D", 1.0, dict.fromkeys(NAMES, ROW), [], contrasts, {}, [str(case) for case in range(40)], 30, 10, listed, []
    )
    return Results(spec, [table], [], "", {"processor": "any", "cores": "1"}, {})


def test_the_primary_comparison_says_what_it_rests_on_and_what_it_could_show():
    results = make_results(primary=Primary("full", "fusion-scratch", "dice"), margin=0.015)
    (sentences,) = primary_statements(results)
    found = results.tables[0].contrasts[0].found
    assert sentences[0].startswith("Dice on D, “fusion, all losses” against “fusion network from scratch”: +0.05")
    assert sentences[0].endswith("p < 0.0001, higher.")
    text = " ".join(sentences)
    assert "40 cases of 30 patients, 5 folds with 2 seeds: 10 trainings per recipe" in text
    assert f"About three of four such benchmarks would show a true difference of {found.detectable:.4f};" in text
    assert f"observed differences below {(found.high - found.low) / 2:.4f} could not have been shown." in text
    assert "Both are for p" not in text
    cost = "100 steps of pre-training, 40 supervised steps, 3000 T multiply-adds, 1.50 h"
    first, second = "“fusion, all losses”", "“fusion network from scratch”"
    assert f"Cost of a training: {first} {cost}; {second} {cost}." in text
    assert "beforehand" not in text
    late = " ".join(*primary_statements(replace(results, stated_late={"none": 2, "full against unetrpp by dice": 1})))
    assert "It was not stated beforehand for all trainings: 3 began while" in late
    assert "or none (2: none; 1: full against unetrpp by dice)." in late
    earlier = " ".join(*primary_statements(replace(results, unrecorded=2)))
    assert "is not recorded for 2 trainings: an earlier version" in earlier and "began while" not in earlier
    added = " ".join(*primary_statements(replace(results, planned_otherwise=1)))
    assert "1 training began while the benchmark's file named other seeds or folds, which may" in added
    earlier = " ".join(*primary_statements(replace(results, plan_unrecorded=2)))
    assert "seeds and folds the benchmark's file named at first is not recorded for 2 trainings: an earlier" in earlier
    assert "By the margin of 0.015 in the benchmark's file: the difference is larger than the margin." in text
    assert f"**{sentences[0]}** {sentences[1]}" in markdown(results, {})


def comparisons_page(results: Results) -> str:
    (table,) = results.tables
    return render(
        "comparisons.html.j2",
        table=table,
        titles=results.titles,
        exploratory=exploratory_contrasts,
        statements=statements,
        metrics=COMPARED,
    )


def test_a_metric_of_one_line_is_compared_and_reported(monkeypatch):
    monkeypatch.setitem(COMPARED, "volume_error", Metric("Volume error ml", 1, 0.0, False))
    primary = read_primary(Path("b.toml"), ["full", "fusion-scratch", "volume_error"], NAMES, [1.0])
    results = make_results("volume_error", primary=primary, margin=2.0)
    assert "volume_error" in compared_metrics(results.spec)
    ((said, *_),) = primary_statements(results)
    assert re.match(r"Volume error ml on D, .*: \+0\.\d .*, higher \(lower is better\)\.$", said)
    heading_ = "difference to UNETR++ from scratch (exploratory, lower is better)"
    assert f"Volume error ml, {heading_}:" in markdown(results, {})
    page = comparisons_page(results)
    assert f"<h3>Volume error ml: {heading_}</h3>" in page


@pytest.mark.parametrize(
    ("values", "said", "unsaid"),
    [
        (
            {},
            ["two parts, cases (patients within folds)", "check both", "“p, fold means”", "share training"],
            ["With one"],
        ),
        ({"seeds": (0,)}, ["With one training per fold", "no second check", "share training"], ["two parts", "“p, f"]),
        ({"folds": (0,)}, ["two parts, cases"], ["means of the folds", "share training"]),
        ({"folds": (0,), "seeds": (0,)}, ["nothing is tested"], ["two parts", "share training"]),
        ({"held_out": True}, ["two parts, cases (patients)", "check trainings", "share training"], ["“p, fold"]),
        ({"held_out": True, "seeds": (0,)}, ["trainings (by the means of the folds; "], ["within", "check"]),
    ],
)
def test_the_page_says_what_the_uncertainty_is_made_of(values, said, unsaid):
    text = " ".join(uncertainty(replace(make_results().spec, **values)))
    assert all(words in text for words in said) and not any(words in text for words in unsaid)


def test_the_conservative_check_is_not_said_to_be_one_where_it_is_the_test_itself():
    results = make_results(primary=Primary("full", "fusion-scratch", "dice"))
    assert "Conservative check, t-test over the means of 5 folds: p" in " ".join(*primary_statements(results))
    (table,) = results.tables
    scores = {name: np.random.default_rng(index).random((40, 1)) for index, name in enumerate(NAMES)}
    contrasts = make_contrasts(results.spec, "dice", scores, Design(case_folds=FOLDS), 1.0)
    (sentences,) = primary_statements(replace(results, tables=[replace(table, contrasts=contrasts)]))
    assert "Conservative check" not in " ".join(sentences) and sentences[-1].startswith("One training per fold")


def test_without_a_primary_comparison_the_page_says_so():
    (sentences,) = primary_statements(make_results())
    assert sentences == [
        "No primary comparison was named in the benchmark's file. "
        "All 2 comparisons are exploratory and corrected together."
    ]
    ((_, added, earlier),) = primary_statements(replace(make_results(), planned_otherwise=1, plan_unrecorded=3))
    assert added.startswith("1 training began while") and "is not recorded for 3 trainings" in earlier


def test_a_primary_comparison_that_is_not_complete():
    results = make_results(primary=Primary("full", "nnunet", "dice"))
    assert primary_statements(results) == [
        ["The primary comparison cannot be made yet: one of its recipes is not complete."]
    ]


def test_several_data_sets_are_corrected_and_worse_is_not_called_better():
    results = make_results(primary=Primary("full", "fusion-scratch", "dice"))
    (table,) = results.tables
    first = replace(table.contrasts[0], metric="hd95")
    two = replace(results.spec, datasets=(1, 2))
    results = replace(results, spec=two, tables=[replace(table, contrasts=[first])] * 2)
    statements = primary_statements(results)
    assert len(statements) == 2
    assert statements[0][0].endswith("higher (lower is better).")
    assert statements[0][1].startswith("Corrected for 2 data sets, p ")
    text = " ".join(statements[0])
    assert "cannot be made yet" not in text and "Both are for p below 0.05 / 2, which is enough" in text
    assert f"differences below {first.found.least_shown:.2f} could not" in text


def test_a_data_set_that_is_not_complete_counts_as_no_difference():
    """Its primary comparison will be made: until then, p is not smaller than it may be then."""
    results = make_results(primary=Primary("full", "fusion-scratch", "dice"), datasets=(1, 2))
    tables = correct_together(results.tables, results.spec)
    primary = tables[0].contrasts[0].found
    assert primary.adjusted_p == pytest.approx(2 * primary.p)
    (sentences,) = primary_statements(replace(results, tables=tables))
    assert sentences[1].startswith("Corrected for 2 data sets, p ")
    assert sentences[2].startswith("On 1 of them it cannot be made yet")


def test_a_table_without_a_complete_recipe_says_so_and_has_no_empty_table():
    results = make_results()
    empty = replace(results.tables[0], rows={}, incomplete=list(NAMES), contrasts=[], cases=[], patients=0)
    text = markdown(replace(results, tables=[empty]), {})
    assert "**Left out, not complete: fusion, all losses, fusion network from scratch, UNETR++ from scratch.**" in text
    assert "No recipe is complete yet." in text
    assert "0 cases" not in text and "|" not in text


def test_a_primary_comparison_that_was_removed_is_told():
    """It may have been removed after the scores were seen."""
    named = {"full against unetrpp by dice, margin 0.02": 6}
    results = replace(make_results(), stated_late=named)
    ((sentence,),) = primary_statements(results)
    assert sentence.endswith("6 trainings began while it named one: full against unetrpp by dice, margin 0.02.")
    assert headlines(results)[-1].endswith("6 trainings began while it named one: " + "".join(named) + ".")
    late = replace(make_results(primary=Primary("full", "nnunet", "dice")), stated_late=named)
    assert "6 began while the benchmark's file named another" in " ".join(*primary_statements(late))


def test_hours_of_processors_are_told_where_they_are_the_device():
    primary = Primary("full", "fusion-scratch", "dice")
    assert ", 1.50 h, 2.00 CPU h; " in " ".join(*primary_statements(make_results(primary=primary, device="cpu")))
    assert "CPU h" not in " ".join(*primary_statements(make_results(primary=primary, device="cuda")))


def test_costs_that_differ_have_their_extremes_and_their_reasons():
    results = make_results(primary=Primary("full", "fusion-scratch", "dice"))
    (table,) = results.tables
    cost = replace(COST, steps=Amount(350.0, 300.0, 400.0), cpu_hours=None)
    row = replace(ROW, cost=cost, ended_early=["D__full__fold0 after 3 epochs (asked)"])
    table = replace(table, rows={**table.rows, "full": row}, machines=["cores 2", "cores 8"])
    results = replace(results, tables=[table])
    text, notes = markdown(results, {}), cost_notes(table)
    assert "| fusion, all losses | 100 | 350 (300–400) | – | 3000 T | 1.50 | 0.50 | – | 2.5 |" in text
    assert notes == [
        "The trainings come from 2 machines, so their hours cannot be compared directly: cores 2; cores 8.",
        "Ended before the last epoch: D__full__fold0 after 3 epochs (asked).",
    ]
    (said,) = primary_statements(results)
    assert set(notes) < set(said) and all(note in text for note in notes)
    assert "350 (300–400) supervised steps" in " ".join(said)


@pytest.mark.parametrize(
    ("number", "text"),
    [(1.394e12, "1.39"), (2.781e12, "2.78"), (3e11, "0.300"), (9.996e12, "10.00"), (2.5e17, "250000"), (0.0, "0.00")],
)
def test_recipes_can_be_compared_by_their_multiply_adds(number, text):
    """In toy trainings and in published ones; a digit too many after rounding up is no harm."""
    assert multiply_adds(Amount(number, number, number)) == text


def test_multiply_adds_have_the_digits_of_their_mean():
    assert multiply_adds(Amount(1.1e12, 9.95e11, 1.2e12)) == "1.10 (0.99–1.20)"
    assert multiply_adds(None) == "–"


def test_the_primary_comparison_is_pointed_to_where_it_is_left_out():
    results = make_results(primary=Primary("full", "unetrpp", "dice"))
    text = markdown(results, {})
    assert "Not in this table: fusion, all losses against UNETR++ from scratch, see [the primary" in text
    assert "Not in this table" not in markdown(make_results(), {})
    page = comparisons_page(results)
    assert '<a href="#primary">the primary comparison</a>' in page


def test_the_primary_comparison_is_not_said_to_be_corrected_with_the_others():
    results = make_results(primary=Primary("full", "unetrpp", "dice"))
    (table,) = results.tables
    text = latex(results)
    assert "from scratch is shown (primary comparison; p below 0.05, not corrected)." in text
    assert "fusion, all losses & 80.00 $\\pm$ 1.00$^{\\ddagger}$" in text and "\\dagger$ A difference" not in text
    assert benchmark._shown_means(results, table, "dice").endswith(
        "“fusion, all losses” is the primary comparison: its p is not corrected."
    )
    assert benchmark._shown_means(results, table, "betti_error").endswith("of the report, is below 0.05.")


@pytest.mark.parametrize(
    ("seeds", "spread", "caption"),
    [((0, 1), 0.01, "Bands: standard deviation over seeds."), ((0,), None, "No bands: with one seed, ")],
)
def test_the_caption_of_the_label_fractions_explains_bands_that_are_there(seeds, spread, caption):
    results = make_results(seeds=seeds)
    row = replace(ROW, seed_sd={"dice": spread})
    table = replace(results.tables[0], rows=dict.fromkeys(NAMES, row), values={"dice": {"full": [[0.8], [0.9]]}})
    tables = [table, replace(table, fraction=0.1)]
    *_, (name, _, _, text) = benchmark._figures(replace(results, tables=tables), table)
    assert name == "D_labels" and text.startswith(caption)
    drawn = benchmark._fraction_curves(replace(results, tables=tables), "D", "dice")
    assert drawn == {recipe: {1.0: (0.8, spread), 0.1: (0.8, spread)} for recipe in NAMES}


def test_the_margin_does_not_contradict_the_corrected_verdict():
    found = make_results().tables[0].contrasts[0].found
    assert found.against_margin(0.01) == "the difference is larger than the margin"
    unclear = replace(found, adjusted_p=0.06)
    assert unclear.verdict == "no difference shown"
    assert unclear.against_margin(0.01).endswith("corrected for all data sets, no difference is shown")


def test_caveats_are_counted():
    results = make_results()
    (table,) = results.tables
    lonely = [replace(one, found=replace(one.found, seeds=(1, 1))) for one in table.contrasts]
    (text,) = caveats(replace(table, contrasts=lonely))
    assert text.startswith("one training per fold") and text.endswith("(2 of 2 comparisons)")


def test_where_means_and_differences_may_disagree_the_page_says_so():
    (table,) = make_results().tables
    assert not any("perfect" in text for text in caveats(table))
    rows = {**table.rows, "full": replace(ROW, has_absent=True)}
    (text,) = (text for text in caveats(replace(table, rows=rows)) if "perfect" in text)
    assert text.startswith("a structure that neither truth nor prediction has counts as perfect in comparisons")


def test_latex_marks_what_is_shown_and_not_the_best():
    text = latex(make_results())
    assert "\\textbf" not in text
    assert "fusion, all losses & 80.00 $\\pm$ 1.00$^{\\dagger}$ & 5.00 & 80.00 \\\\" in text
    assert "fusion network from scratch & 80.00 $\\pm$ 1.00 & 5.00 & 80.00 \\\\" in text
    assert "$\\dagger$ A difference of Dice to UNETR++ from scratch is shown" in text


@pytest.mark.parametrize("betti", [False, True])
def test_markdown_has_betti_errors_and_costs(betti):
    text = markdown(make_results(betti=betti), {})
    assert ("| Betti error |" in text) == betti
    assert ("| 0.9000 | 1.25 | 0.0 |" in text) == betti
    lines = latex(make_results(betti=betti))
    assert ("& HD95 (mm) & Betti error & organ" in lines) == betti
    assert ("& 5.00 & 1.25 & 80.00 \\\\" in lines) == betti
    assert f"\\begin{{tabular}}{{l{'rrrr' if betti else 'rrr'}}}" in lines
    assert "| fusion, all losses | 0.8000 | 0.0100 | 0.0200 | 5.00 |" in text
    assert "| fusion, all losses | 100 | 40 | – | 3000 T | 1.50 | 0.50 | 2.00 | 2.5 |" in text


class Elements(HTMLParser):
    """Collects the names of elements and attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found |= {tag, *(name for name, _ in attrs)}


def test_names_and_labels_are_text_on_the_page_of_a_benchmark(tmp_path, monkeypatch):
    """Those of a data set and of recipes that would be elements, attributes or a program."""
    hostile = "</td><blink onload='run()'>{{ 1 + 1 }}\"onfocus=\"run()"
    recipes = tuple(replace(RECIPES[name], title=f"{name}{hostile}") for name in NAMES)
    results = make_results(recipes=recipes)
    table = results.tables[0]
    metrics = {
        **MEAN,
        **dict.fromkeys(("volume_error", "absolute_volume_error", "spurious", "paper_dice", "paper_hd95"), 1.0),
    }
    by_case = {hostile: {hostile: metrics}}
    row = replace(table.rows["full"], structures={hostile: metrics}, mean=metrics, by_case=by_case)
    ranks = {"dice": dict.fromkeys(NAMES, [1 / 3] * 3)}
    table = replace(table, dataset=hostile, rows=dict.fromkeys(NAMES, row), ranks=ranks, cases=[hostile])
    jobs = [JobRecord(hostile, "0", 60.0, [hostile])]
    results = replace(results, versions={"nnunet-topomae": hostile})
    results = replace(results, tables=[table], jobs=jobs, machine={"processor": hostile, "cores": "1"})
    monkeypatch.setattr(benchmark, "collect", lambda *_: [])
    monkeypatch.setattr(benchmark, "build_results", lambda *_: results)
    monkeypatch.setattr(benchmark, "_write_figures", lambda *_: [])
    monkeypatch.setattr(benchmark, "worst_cases", lambda *_: [])
    benchmark.write_benchmark_report(results.spec, [], tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("&lt;blink") > 5 and "{{ 1 + 1 }}" in page
    assert not Elements(page).found & {"blink", "onload", "onfocus", "script"}


@pytest.mark.parametrize("betti", [False, True])
def test_betti_errors_are_on_the_page_and_in_figures_of_their_own(tmp_path, monkeypatch, betti):
    others = ("volume_error", "absolute_volume_error", "spurious", "paper_dice", "paper_hd95")
    metrics = MEAN | dict.fromkeys(others, 1.0)
    metrics |= {} if betti else {"betti_error": float("nan")}
    spreads = {"dice": 0.01, "betti_error": 0.1}
    row = replace(ROW, structures={"organ": metrics}, mean=metrics, seed_sd=spreads, by_case={"0": {"organ": metrics}})
    results = make_results("betti_error" if betti else "dice", betti=betti)
    values = {metric: {"full": [[0.8], [0.9]]} for metric in (["dice", "betti_error"] if betti else ["dice"])}
    ranks = {"dice": dict.fromkeys(NAMES, [1 / 3] * 3)}
    table = replace(results.tables[0], rows=dict.fromkeys(NAMES, row), values=values, ranks=ranks, cases=["0"])
    results = replace(results, tables=[table, replace(table, fraction=0.1)])
    monkeypatch.setattr(benchmark, "collect", lambda *_: [])
    monkeypatch.setattr(benchmark, "build_results", lambda *_: results)
    monkeypatch.setattr(benchmark, "worst_cases", lambda *_: [])
    _, written = benchmark.write_benchmark_report(results.spec, [], tmp_path)
    drawn = {path.name for path in written if "betti_error" in path.name}
    expected = {"D_betti_error_differences.svg", "D_betti_error_labels.svg", "D_labels10_betti_error_differences.svg"}
    assert drawn == (expected if betti else set())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ('<th scope="col">Betti error, count</th>' in page) == betti
    assert ("<td>1.25</td>" in page) == ("Dots of Dice, HD95 and Betti error" in page) == betti
