"""The sentence that a report begins with."""

from dataclasses import replace
from pathlib import Path

import pytest

from nnunet_topomae.benchmark.primary import Primary
from nnunet_topomae.benchmark.recipes import RECIPES
from nnunet_topomae.benchmark.results import Contrast, Cost, Results, Row, Table
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.evaluation.statistics import Comparison
from nnunet_topomae.reports.headline import headline, headlines

FOUND = Comparison(
    difference=0.02,
    low=0.01,
    high=0.03,
    p=0.001,
    adjusted_p=0.002,
    fold_p=0.01,
    detectable=0.015,
    least_shown=0.01,
    wilcoxon_p=0.001,
    rank_biserial=0.8,
    standardised=1.0,
    win_rate=0.9,
    paper_p=0.01,
    cases=20,
    patients=20,
    folds=5,
    seeds=(3, 3),
)
NAN = float("nan")
TITLES = {"full": "fusion", "vit": "ViT", "unetrpp": "from scratch"}
CHOSEN = tuple(replace(RECIPES["full"], name=name, title=title) for name, title in TITLES.items())
SPEC = BenchmarkSpec("test", Path(), (1,), CHOSEN, ("unetrpp",))
RESULTS = Results(SPEC, [], [], "", {}, {})


def table(primary: bool = False, **compared: Comparison) -> Table:
    means = {"unetrpp": 0.8, **{name: 0.8 + found.difference for name, found in compared.items()}}
    cost = Cost(1.0, 0.5, 1.0, 1.0, None, None, None, None, 1.0)
    rows = {name: Row({}, {"dice": mean}, {"dice": 0.0}, 0.0, 20, {}, 1, None, cost) for name, mean in means.items()}
    cases = [str(number) for number in range(20)]
    contrasts = [Contrast(name, "unetrpp", "dice", primary, found) for name, found in compared.items()]
    return Table("Dataset001_A", 1.0, rows, [], contrasts, {}, cases, 20, 15, {}, [])


def test_it_says_which_recipe_by_how_much_on_what_and_whether_it_is_shown() -> None:
    assert headline(table(full=FOUND), RESULTS) == (
        "fusion: mean Dice 0.8200, 0.0200 above from scratch (95 % interval of the difference +0.0100 to +0.0300, "
        "20 cases, 3 seeds). A difference is shown."
    )


@pytest.mark.parametrize(
    ("found", "end"),
    [
        (replace(FOUND, adjusted_p=0.06), "3 seeds). No difference is shown."),
        (replace(FOUND, seeds=(1, 1), p=NAN), "1 seed). No difference is shown: one training each: may be luck"),
        (replace(FOUND, seeds=(3, 2), patients=5), "3 and 2 seeds). No difference is shown: too few patients to test"),
        (replace(FOUND, low=NAN, high=NAN, p=NAN), "above from scratch (20 cases, 3 seeds)"),
    ],
)
def test_it_does_not_claim_what_is_not_shown(found: Comparison, end: str) -> None:
    assert end in headline(table(full=found), RESULTS)


def test_of_several_recipes_it_names_the_best_and_how_many_there_were() -> None:
    worse = replace(FOUND, difference=-0.05, low=-0.06, high=-0.04)
    sentence = headline(table(vit=replace(worse, difference=-0.06), full=worse), RESULTS)
    assert sentence.startswith("fusion: mean Dice 0.7500, 0.0500 below from scratch, the best of 2 recipes")


def test_without_a_comparison_it_lists_the_scores() -> None:
    assert headline(table(), RESULTS) == "Mean Dice of 20 cases: from scratch 0.8000. Nothing is compared."
    assert headline(replace(table(), rows={}), RESULTS) == "No recipe is complete yet."
    both = replace(RESULTS, tables=[table(), replace(table(), fraction=0.1)])
    starts = [sentence.partition(": ")[0] for sentence in headlines(both)]
    assert starts == ["Dataset001_A", "Dataset001_A_labels10"]


def test_a_comparison_that_was_named_beforehand_goes_before_the_best() -> None:
    spec = replace(SPEC, primary=Primary("vit", "unetrpp", "dice"))
    worse = replace(FOUND, difference=-0.05, low=-0.06, high=-0.04)
    shown = replace(RESULTS, spec=spec, tables=[table(primary=True, vit=worse)])
    (sentence,) = headlines(shown)
    assert "“ViT” against “from scratch”" in sentence and "lower" in sentence
