"""Comparisons against known answers, their correction, and what a verdict says."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind, wilcoxon

from nnunet_topomae.evaluation import statistics
from nnunet_topomae.evaluation.nested import Design, estimate
from nnunet_topomae.evaluation.statistics import compare, correct, holm, rank_biserial, rank_shares

FOLDS = [fold for fold in range(5) for _ in range(6)]
DESIGN = Design(case_folds=FOLDS)


def simulate(generator, cases, seeds, effect=0.0):
    """Scores of two recipes: cases differ, every training of one fold has a luck of its own, every score has noise."""
    difficulty = 0.8 + 0.05 * generator.standard_normal((cases, 1))
    return {
        name: difficulty
        + shift
        + 0.01 * generator.standard_normal((1, seeds))
        + 0.02 * generator.standard_normal((cases, seeds))
        for name, shift in (("baseline", 0.0), ("recipe", effect))
    }


def test_known_numbers():
    generator = np.random.default_rng(2)
    scores = {"a": generator.random((9, 3)), "b": generator.random((9, 2)), "c": generator.random((9, 3))}
    found = compare(scores, "b")
    known = estimate(scores["a"], scores["b"], Design())
    difference = scores["a"].mean(1) - scores["b"].mean(1)
    assert found["a"].difference == pytest.approx(difference.mean())
    assert (found["a"].p, found["a"].low, found["a"].high) == (known.p, *known.interval())
    assert found["a"].wilcoxon_p == pytest.approx(wilcoxon(scores["a"].mean(1), scores["b"].mean(1)).pvalue)
    assert found["a"].paper_p == pytest.approx(ttest_ind(scores["a"].mean(0), scores["b"].mean(0)).pvalue)
    assert found["a"].standardised == pytest.approx(difference.mean() / difference.std(ddof=1))
    assert found["a"].win_rate == (difference > 0).mean()
    assert (found["a"].cases, found["a"].patients, found["a"].seeds) == (9, 9, (3, 2))
    assert [found[n].adjusted_p for n in "ac"] == pytest.approx(holm([found["a"].p, found["c"].p]))
    assert compare(scores, "b", higher_is_better=False)["a"].win_rate == pytest.approx(1 - found["a"].win_rate)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_family_is_corrected_together_and_leaves_out_what_cannot_be_tested():
    generator = np.random.default_rng(0)
    one = compare(simulate(generator, 30, 3, 0.1), "baseline", DESIGN)["recipe"]
    other = compare(simulate(generator, 30, 3), "baseline", DESIGN)["recipe"]
    found = correct({"one": one, "other": other, "none": replace(one, p=float("nan"))})
    assert [found[name].adjusted_p for name in ("one", "other")] == pytest.approx(holm([one.p, other.p]))
    assert np.isnan(found["none"].adjusted_p) and not found["none"].shown


def test_rank_biserial_by_hand():
    assert rank_biserial(np.array([1.0, 2.0, -3.0])) == pytest.approx(0.0)
    assert rank_biserial(np.array([1.0, 2.0, 0.0])) == 1.0
    assert rank_biserial(np.zeros(4)) == 0.0


def test_few_patients_are_said_to_be_too_few():
    scores = {"a": np.random.default_rng(0).random((8, 3)) + 10, "b": np.zeros((8, 3))}
    found = compare(scores, "b", Design(patients=list("aabbccdd")))["a"]
    assert found.p < 1e-3 and not found.shown
    assert found.verdict == "too few patients to test (4, at least 6)"
    assert found.against_margin(0.1) == "neither a difference nor equivalence can be tested"


def test_one_training_each_shows_nothing():
    scores = simulate(np.random.default_rng(0), 40, 1, effect=0.2)
    found = compare(scores, "baseline")["recipe"]
    assert found.wilcoxon_p < 1e-6
    assert np.isnan([found.p, found.low, found.detectable]).all()
    assert not found.shown and found.caveats == []
    assert found.verdict == "one training each: may be luck (repeat with other seeds)"


def test_two_pairs_in_one_fold_show_nothing():
    scores = simulate(np.random.default_rng(0), 40, 2, effect=0.2)
    found = compare(scores, "baseline", Design(paired=True))["recipe"]
    assert not found.shown and found.verdict == "two pairs of trainings: too few to test (repeat with other seeds)"


def test_one_training_per_fold_is_said_to_confound_luck_and_fold():
    scores = simulate(np.random.default_rng(0), 30, 1, effect=0.2)
    found = compare(scores, "baseline", DESIGN)["recipe"]
    means = (scores["recipe"] - scores["baseline"]).reshape(5, 6).mean(axis=1)
    assert found.verdict == "higher" and found.p == pytest.approx(ttest_1samp(means, 0.0).pvalue)
    assert np.isnan(found.fold_p)  # the same test is no check of itself
    assert found.caveats[0].startswith("one training per fold: luck of a training and effect of a fold cannot")


def test_verdicts():
    scores = simulate(np.random.default_rng(0), 30, 5, effect=0.1)
    assert compare(scores, "baseline", DESIGN)["recipe"].verdict == "higher"
    assert compare(scores, "recipe", DESIGN)["baseline"].verdict == "lower"
    same = {"a": scores["recipe"], "b": scores["recipe"]}
    equal = compare(same, "a", DESIGN)["b"]
    assert (equal.verdict, equal.p, equal.win_rate) == ("no difference shown", 1.0, 0.5)


def test_what_could_be_shown_is_for_the_level_that_is_asked_for():
    """Moved by `least_shown`, p is the level; the interval stays that of 95 %."""
    scores = simulate(np.random.default_rng(0), 30, 3)
    usual, strict = (compare(scores, "baseline", DESIGN, level=level)["recipe"] for level in (0.05, 0.025))
    for level, found in ((0.05, usual), (0.025, strict)):
        moved = scores | {"recipe": scores["recipe"] - found.difference + found.least_shown}
        assert compare(moved, "baseline", DESIGN)["recipe"].p == pytest.approx(level)
        known = estimate(scores["recipe"], scores["baseline"], DESIGN)
        assert found.detectable == known.detectable(level) > found.least_shown
    assert (strict.low, strict.high) == (usual.low, usual.high)


def test_caveats_say_where_interval_p_and_folds_disagree():
    found = compare(simulate(np.random.default_rng(0), 30, 5, effect=0.1), "baseline", DESIGN)["recipe"]
    assert found.caveats == []
    (corrected,) = replace(found, adjusted_p=0.2).caveats
    assert corrected.startswith("the interval is of this comparison alone")
    assert replace(found, fold_p=0.2).caveats == ["a t-test over the means of the 5 folds alone does not show it"]
    (unseen,) = replace(found, p=0.2, adjusted_p=0.4, fold_p=0.012).caveats
    assert unseen == "a t-test over the means of the 5 folds alone has p 0.012, without correction"
    assert replace(found, p=0.2, adjusted_p=0.4, fold_p=0.06).caveats == []
    assert replace(found, folds=1).caveats == ["one fold: whether another split would agree is not known"]
    (few,) = replace(found, folds=2).caveats
    assert few.startswith("only 2 folds: whether a recipe suits some of them better is hardly seen")


@pytest.mark.parametrize(
    ("low", "high", "phrase"),
    [
        (-0.01, 0.012, "equivalent, the whole interval"),
        (0.002, 0.012, "equivalent, the whole interval"),
        (0.002, 0.03, "a difference is shown, but it may be smaller"),
        (0.016, 0.03, "the difference is larger than the margin"),
        (-0.03, -0.016, "the difference is larger than the margin"),
        (-0.01, 0.03, "undecided"),
    ],
)
def test_a_margin_tells_equivalence_from_ignorance(low, high, phrase):
    found = compare(simulate(np.random.default_rng(0), 30, 2), "baseline", DESIGN)["recipe"]
    p = 0.01 if low * high > 0 else 0.5
    found = replace(found, low=low, high=high, p=p, adjusted_p=p)
    assert found.against_margin(0.015).startswith(phrase)


def test_ranks():
    generator = np.random.default_rng(0)
    scores = {name: generator.normal(mean, 0.01, (10, 3)) for name, mean in (("low", 0.1), ("high", 0.9), ("mid", 0.5))}
    assert rank_shares(scores, generator) == {"low": [0.0, 0.0, 1.0], "high": [1.0, 0.0, 0.0], "mid": [0.0, 1.0, 0.0]}
    assert rank_shares(scores, generator, higher_is_better=False)["low"] == [1.0, 0.0, 0.0]
    close = {name: generator.normal(0.5, 0.1, (10, 3)) for name in "ab"}
    shares = rank_shares(close, generator)
    assert sum(shares["a"]) == pytest.approx(1.0)
    assert 0.0 < shares["a"][0] < 1.0


def test_ranks_resample_trainings_within_folds():
    """A luck of single trainings matters less the more folds there are: 5 x 2 trainings are ten."""
    generator = np.random.default_rng(1)
    luck = np.repeat(generator.normal(0, 0.02, (5, 2)), 6, axis=0)
    scores = {"lucky": 0.5 + luck, "better": np.full((30, 2), 0.5 + luck.mean() + 0.004)}
    nested, crossed = (rank_shares(scores, np.random.default_rng(2), design=d)["better"][0] for d in (DESIGN, Design()))
    assert 0.5 < nested < 1.0
    assert nested != crossed
    paired = rank_shares(
        {"a": scores["lucky"], "b": scores["lucky"] + 1e-6}, generator, design=Design(FOLDS, paired=True)
    )
    assert paired["b"] == [1.0, 0.0]


def test_ranks_of_held_out_cases_resample_the_trainings_of_all_folds():
    """One training per fold; as the folds differ, either recipe may come first."""
    luck = np.random.default_rng(4).normal(0, 0.02, (1, 5))
    scores = {"lucky": 0.5 + np.repeat(luck, 8, axis=0), "better": np.full((8, 5), 0.501 + luck.mean())}
    shares = rank_shares(scores, np.random.default_rng(5), design=Design(training_folds=range(5)))
    assert 0.5 < shares["better"][0] < 0.8


def test_bad_tables_raise():
    good = np.zeros((4, 2))
    with pytest.raises(ValueError, match="no scores of the baseline c"):
        compare({"a": good}, "c")
    with pytest.raises(ValueError, match="b has 3 cases, a has 4"):
        compare({"a": good, "b": good[:3]}, "a")
    with pytest.raises(ValueError, match="b has 8 scores that are not numbers"):
        compare({"a": good, "b": good * np.nan}, "a")


def test_the_usual_way_finds_too_much():
    """What Wilcoxon's test on cases says of trainings that differ by luck alone."""
    generator = np.random.default_rng(3)
    found = [compare(simulate(generator, 40, 2), "baseline")["recipe"] for _ in range(40)]
    assert np.mean([one.wilcoxon_p < statistics.LEVEL for one in found]) > 0.2
    assert np.mean([one.p < statistics.LEVEL for one in found]) < 0.15
