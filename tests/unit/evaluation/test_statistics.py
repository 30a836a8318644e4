"""Statistics against known answers, and their false positives in simulated benchmarks without an effect."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_ind, wilcoxon

from nnunet_topomae.evaluation import statistics
from nnunet_topomae.evaluation.statistics import bootstrap_interval, compare, holm, rank_biserial, rank_shares


def simulate(generator, cases, seeds, effect=0.0, case_noise=0.05, seed_noise=0.01, noise=0.02, suits=0.0):
    """Scores of two recipes: cases differ, every training has a luck of its own, and every score has noise.

    With ``suits`` each recipe is better on some cases than on others, without being better on average.
    """
    difficulty = 0.8 + case_noise * generator.standard_normal((cases, 1))
    return {
        name: difficulty
        + shift
        + suits * generator.standard_normal((cases, 1))
        + seed_noise * generator.standard_normal((1, seeds))
        + noise * generator.standard_normal((cases, seeds))
        for name, shift in (("baseline", 0.0), ("recipe", effect))
    }


def shown_rate(repetitions, cases, seeds, effect, suits=0.0):
    """Share of simulated benchmarks in which a difference is shown."""
    generator = np.random.default_rng(7)
    tables = [simulate(generator, cases, seeds, effect, suits=suits) for _ in range(repetitions)]
    gains = np.stack([table["recipe"].mean(1) - table["baseline"].mean(1) for table in tables])
    # The others need no bootstrap: test_nothing_is_shown_without_a_significant_test.
    significant = np.flatnonzero(wilcoxon(gains, axis=1).pvalue < statistics.LEVEL)
    return sum(compare(tables[i], "baseline", generator)["recipe"].shown for i in significant) / repetitions


def test_nothing_is_shown_without_a_significant_test():
    generator = np.random.default_rng(0)
    found = compare(simulate(generator, 30, 5, effect=0.1), "baseline", generator)["recipe"]
    assert found.shown and found.p == found.adjusted_p
    assert not replace(found, adjusted_p=statistics.LEVEL).shown


@pytest.mark.parametrize("suits", [0.0, 0.03])
@pytest.mark.parametrize(("cases", "seeds"), [(8, 2), (12, 5), (40, 2), (40, 5)])
def test_false_positives_stay_under_8_percent(cases, seeds, suits, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    assert shown_rate(800, cases, seeds, 0.0, suits) < 0.08


def test_real_effects_are_found(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    rates = [shown_rate(150, 20, 5, effect) for effect in (0.0, 0.02, 0.06)]
    assert rates[0] < rates[1] < rates[2]
    assert rates[2] > 0.9


def test_the_usual_ways_would_find_too_much():
    """What the paper's protocol and tests on all values say of the same data without an effect."""
    generator = np.random.default_rng(3)
    pooled, repetitions = 0, 400
    for _ in range(repetitions):
        scores = simulate(generator, 12, 5)
        pooled += wilcoxon((scores["recipe"] - scores["baseline"]).ravel()).pvalue < 0.05
    assert pooled / repetitions > 0.15


def test_the_interval_covers_the_true_difference(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        scores = simulate(generator, 15, 6, effect=0.03)
        low, high = bootstrap_interval(scores["recipe"], scores["baseline"], generator)
        covered += low <= 0.03 <= high
    assert covered / 300 > 0.88


def test_the_bootstrap_has_the_variance_of_the_mean():
    generator = np.random.default_rng(0)
    table = generator.standard_normal((6, 1))
    low, high = bootstrap_interval(table, np.zeros((6, 1)), np.random.default_rng(1), level=0.3173)
    widened = student.ppf(1 - 0.3173 / 2, 5)
    assert (high - low) / 2 == pytest.approx(widened * table.std(ddof=1) / np.sqrt(6), rel=0.05)


def test_known_numbers():
    generator = np.random.default_rng(2)
    scores = {"a": generator.random((9, 3)), "b": generator.random((9, 2)), "c": generator.random((9, 3))}
    found = compare(scores, "b", np.random.default_rng(0))
    difference = scores["a"].mean(1) - scores["b"].mean(1)
    assert found["a"].difference == pytest.approx(difference.mean())
    assert found["a"].p == pytest.approx(wilcoxon(scores["a"].mean(1), scores["b"].mean(1)).pvalue)
    assert found["a"].paper_p == pytest.approx(ttest_ind(scores["a"].mean(0), scores["b"].mean(0)).pvalue)
    assert found["a"].standardised == pytest.approx(difference.mean() / difference.std(ddof=1))
    assert found["a"].win_rate == (difference > 0).mean()
    assert (found["a"].cases, found["a"].seeds) == (9, (3, 2))
    assert [found[n].adjusted_p for n in "ac"] == pytest.approx(holm([found["a"].p, found["c"].p]))
    assert found == compare(scores, "b", np.random.default_rng(0))
    lower = compare(scores, "b", np.random.default_rng(0), higher_is_better=False)["a"]
    assert lower.win_rate == pytest.approx(1 - found["a"].win_rate)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_rank_biserial_by_hand():
    assert rank_biserial(np.array([1.0, 2.0, -3.0])) == pytest.approx(0.0)
    assert rank_biserial(np.array([1.0, 2.0, 0.0])) == 1.0
    assert rank_biserial(np.zeros(4)) == 0.0


def test_few_cases_are_said_to_be_too_few():
    scores = {"a": np.arange(5.0).reshape(5, 1) + 10, "b": np.arange(5.0).reshape(5, 1)}
    found = compare(scores, "b", np.random.default_rng(0))["a"]
    assert found.smallest_p == found.p == 0.0625
    assert not found.shown
    assert found.verdict == "too few cases to test (5; the smallest possible p is 0.0625)"
    assert np.isnan(found.paper_p)


def test_one_training_each_shows_nothing():
    generator = np.random.default_rng(0)
    scores = simulate(generator, 40, 1, effect=0.2)
    found = compare(scores, "baseline", generator)["recipe"]
    assert found.p < 1e-6
    assert found.low > 0
    assert not found.shown
    assert found.verdict == "one training each: may be luck (repeat with other seeds)"


def test_verdicts():
    generator = np.random.default_rng(0)
    scores = simulate(generator, 30, 5, effect=0.1)
    assert compare(scores, "baseline", generator)["recipe"].verdict == "higher"
    assert compare(scores, "recipe", generator)["baseline"].verdict == "lower"
    same = {"a": scores["recipe"], "b": scores["recipe"]}
    equal = compare(same, "a", generator)["b"]
    assert (equal.verdict, equal.p, equal.win_rate) == ("no difference shown", 1.0, 0.5)


def test_ranks():
    generator = np.random.default_rng(0)
    scores = {name: generator.normal(mean, 0.01, (10, 3)) for name, mean in (("low", 0.1), ("high", 0.9), ("mid", 0.5))}
    assert rank_shares(scores, generator) == {"low": [0.0, 0.0, 1.0], "high": [1.0, 0.0, 0.0], "mid": [0.0, 1.0, 0.0]}
    assert rank_shares(scores, generator, higher_is_better=False)["low"] == [1.0, 0.0, 0.0]
    close = {name: generator.normal(0.5, 0.1, (10, 3)) for name in "ab"}
    shares = rank_shares(close, generator)
    assert sum(shares["a"]) == pytest.approx(1.0)
    assert 0.0 < shares["a"][0] < 1.0


def test_bad_tables_raise():
    good = np.zeros((4, 2))
    with pytest.raises(ValueError, match="no scores of the baseline c"):
        compare({"a": good}, "c", np.random.default_rng(0))
    with pytest.raises(ValueError, match="b has 3 cases, a has 4"):
        compare({"a": good, "b": good[:3]}, "a", np.random.default_rng(0))
    with pytest.raises(ValueError, match="b has 8 scores that are not numbers"):
        compare({"a": good, "b": good * np.nan}, "a", np.random.default_rng(0))
