"""Differences with nested cases and trainings: textbook tests where the design leaves only one source of variation."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind, ttest_rel

from nnunet_topomae.evaluation.nested import Design, _Part, _with_folds, estimate

FOLDS = [fold for fold in range(5) for _ in range(8)]


def simulate(generator, repetitions, folds, size, seeds, *, effect=0.0, luck=0.012, labels=0.0, fold=0.0, scans=1):
    """Scores (repetition, recipe, case, seed) with everything that the analysis accounts for."""
    draw = generator.standard_normal
    scores = 0.02 * draw((repetitions, 2, folds, size, seeds))
    scores += 0.02 * np.repeat(draw((repetitions, 2, folds, size // scans)), scans, axis=3)[..., None]
    scores += luck * draw((repetitions, 2, folds, 1, seeds)) + labels * draw((repetitions, 1, folds, 1, seeds))
    scores += fold * draw((repetitions, 2, folds, 1, 1))
    scores[:, 1] += effect
    return scores.reshape(repetitions, 2, folds * size, seeds)


def test_cases_alone_are_the_paired_t_test():
    """Trainings that do not differ leave only the cases."""
    generator = np.random.default_rng(0)
    recipe, baseline = (np.repeat(generator.random((12, 1)), 3, axis=1) for _ in range(2))
    found = estimate(recipe, baseline, Design())
    assert found.p == pytest.approx(ttest_rel(recipe[:, 0], baseline[:, 0]).pvalue)
    low, high = ttest_rel(recipe[:, 0], baseline[:, 0]).confidence_interval(0.9)
    assert found.interval(0.1) == pytest.approx((low, high))
    assert (found.patients, found.folds, found.seeds) == (12, 1, (3, 3))


def test_trainings_alone_are_welchs_t_test():
    """Cases that do not differ leave only the trainings, of which the recipes may have different numbers."""
    generator = np.random.default_rng(1)
    lucks = generator.normal(0.8, 0.02, 4), generator.normal(0.7, 0.05, 6)
    recipe, baseline = (np.repeat(luck[None], 9, axis=0) for luck in lucks)
    found = estimate(recipe, baseline, Design())
    assert found.p == pytest.approx(ttest_ind(*lucks, equal_var=False).pvalue)
    assert found.seeds == (4, 6)


def test_paired_trainings_are_the_paired_t_test():
    generator = np.random.default_rng(2)
    lucks = generator.normal(0.8, 0.02, 5), generator.normal(0.7, 0.05, 5)
    recipe, baseline = (np.repeat(luck[None], 9, axis=0) for luck in lucks)
    assert estimate(recipe, baseline, Design(paired=True)).p == pytest.approx(ttest_rel(*lucks).pvalue)


def test_two_pairs_of_trainings_in_one_fold_are_not_tested():
    """Student's t with one degree of freedom, added to other variances, finds too much: about 10 %."""
    tables = simulate(np.random.default_rng(4), 400, 1, 20, 3, labels=0.03)
    found = [estimate(recipe[:, :2], baseline[:, :2], Design(paired=True)) for baseline, recipe in tables]
    assert all(np.isnan(one.p) for one in found)
    assert np.isnan(estimate(*tables[0][:, :, :2], Design(training_folds=[0, 0], paired=True)).p)
    three = [estimate(recipe, baseline, Design(paired=True)).p for baseline, recipe in tables]
    assert 0.02 < (np.array(three) < 0.05).mean() < 0.08


def test_one_training_per_fold_leaves_the_means_of_the_folds():
    generator = np.random.default_rng(3)
    recipe, baseline = generator.random((2, 40, 1))
    found = estimate(recipe, baseline, Design(case_folds=FOLDS))
    means = (recipe - baseline).reshape(5, 8).mean(axis=1)
    assert found.p == found.fold_p == pytest.approx(ttest_1samp(means, 0.0).pvalue)
    assert np.isnan(estimate(recipe, baseline, Design()).p)


def test_folds_that_differ_much_count_alone():
    generator = np.random.default_rng(4)
    tables = 0.001 * generator.standard_normal((2, 40, 3))
    tables[1] += np.repeat(generator.standard_normal(5), 8)[:, None]
    found = estimate(tables[1], tables[0], Design(case_folds=FOLDS))
    assert found.p == pytest.approx(found.fold_p) and found.freedom == pytest.approx(4)


def test_folds_that_differ_count_the_more_the_better_the_rest_is_known():
    folds = _Part(1.5, 4.0)
    shares = [
        (_with_folds(_Part(1.0, freedom), folds, 8.0).freedom - freedom - 4) / -freedom for freedom in (3.0, 15.0, 30.0)
    ]
    assert shares == pytest.approx([0.505, 0.625, 1.0])
    assert _with_folds(_Part(1.0, 30.0), folds, 8.0) == folds
    # Folds that differ less than the rest explains count less than half.
    assert _with_folds(_Part(1.0, 30.0), _Part(0.25, 4.0), 8.0).variance == pytest.approx(31 / 34)


@pytest.mark.parametrize(("patients", "weight"), [(2.0, 0.5), (8.0, 0.5), (24.0, 0.75), (56.0, 0.875)])
def test_means_of_folds_count_the_more_the_more_patients_they_have(patients: float, weight: float) -> None:
    total = _with_folds(_Part(1.0, 12.0), _Part(1.0, 4.0), patients)
    assert (total.variance, total.freedom) == (1.0, pytest.approx(16.0 - 12.0 * weight))


def test_held_out_cases_share_the_folds_of_the_trainings():
    """The means of the folds are means of trainings: with equal cases, their t-test."""
    generator = np.random.default_rng(5)
    lucks = generator.normal(0.0, 1.0, (2, 5))
    recipe, baseline = (np.repeat(luck[None], 9, axis=0) for luck in lucks)
    found = estimate(recipe, baseline, Design(training_folds=range(5)))
    assert found.p == pytest.approx(ttest_rel(*lucks).pvalue)
    assert (found.folds, found.seeds) == (5, (1, 1)) and np.isnan(found.fold_p)


def test_scans_of_a_patient_count_once():
    generator = np.random.default_rng(6)
    recipe, baseline = (np.repeat(generator.random((10, 1)), 2, axis=1) for _ in range(2))
    twice = [np.repeat(table, 2, axis=0) for table in (recipe, baseline)]
    found = estimate(*twice, Design(patients=[f"p{case // 2}" for case in range(20)]))
    assert found.patients == 10
    assert found.p == pytest.approx(estimate(recipe, baseline, Design()).p)
    assert estimate(*twice, Design()).variance < 0.6 * found.variance


def test_the_variance_is_that_of_the_difference():
    """One fold, where nothing is pooled: the mean estimate is the true variance, although both parts hold the noise."""
    tables = simulate(np.random.default_rng(7), 300, 1, 10, 3)
    found = [estimate(recipe, baseline, Design()) for baseline, recipe in tables]
    truth = 2 * (0.012**2 / 3 + 0.02**2 / 10 + 0.02**2 / 30)
    assert np.mean([one.variance for one in found]) == pytest.approx(truth, rel=0.08)
    assert np.var([one.difference for one in found]) == pytest.approx(truth, rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "what"),
    [(1, {}), (2, {}), (3, {"labels": 0.03}), (2, {"scans": 2}), (3, {"fold": 0.005})],
    ids=["one seed", "two seeds", "shared labels", "two scans", "folds"],
)
def test_false_positives_are_near_5_percent(seeds, what):
    """Roughly, to be quick; studies/statistics.json has the rates."""
    tables = simulate(np.random.default_rng(8), 200, 5, 8, seeds, **what)
    patients = [str(case // 2) for case in range(40)] if "scans" in what else None
    design = Design(case_folds=FOLDS, patients=patients, paired="labels" in what)
    rate = np.mean([estimate(recipe, baseline, design).p < 0.05 for baseline, recipe in tables])
    assert 0.005 < rate < 0.09


def test_pairing_finds_what_shared_labels_hide():
    tables = simulate(np.random.default_rng(9), 80, 5, 8, 3, effect=0.02, labels=0.03)
    shown = [
        np.mean([estimate(r, b, Design(case_folds=FOLDS, paired=paired)).p < 0.05 for b, r in tables])
        for paired in (False, True)
    ]
    assert shown[1] > 0.6 > 0.4 > shown[0]


def test_order_and_names_do_not_matter():
    generator = np.random.default_rng(10)
    recipe, baseline = generator.random((2, 40, 2))
    order = generator.permutation(40)
    found = estimate(recipe, baseline, Design(case_folds=FOLDS))
    other = estimate(baseline[order], recipe[order], Design(case_folds=[9 - FOLDS[place] for place in order]))
    assert other.difference == pytest.approx(-found.difference)
    assert (other.p, other.freedom) == pytest.approx((found.p, found.freedom))


def test_interval_p_and_power_agree():
    recipe, baseline = np.random.default_rng(11).random((2, 40, 2))
    found = estimate(recipe, baseline, Design(case_folds=FOLDS))
    assert min(map(abs, found.interval(found.p))) == pytest.approx(0.0, abs=1e-9)
    low, high = found.interval()
    assert (high - low) / 2 < found.detectable() < high - low


def test_nothing_varies():
    same = np.full((10, 2), 0.5)
    found = estimate(same, same, Design(case_folds=[0, 1] * 5))
    assert (found.p, found.interval()) == (1.0, (0.0, 0.0))
    assert estimate(same + 0.5, same, Design()).p < 1e-9


@pytest.mark.parametrize(
    ("shapes", "design", "message"),
    [
        (((4, 2), (3, 2)), Design(), "the recipe has 4 cases, the baseline has 3"),
        (((4, 2), (4, 2)), Design(case_folds=[0, 1]), "case_folds has 2 entries for 4 cases"),
        (((4, 2), (4, 2)), Design(patients=["a"]), "patients has 1 entries for 4 cases"),
        (((4, 2), (4, 3)), Design(paired=True), "must be equal in number, got 2 and 3"),
        (((4, 2), (4, 2)), Design(training_folds=[0]), "training_folds has 1 entries for 2 trainings"),
        (((2, 2), (2, 2)), Design(case_folds=[0, 1], training_folds=[0, 1]), "not both"),
    ],
)
def test_tables_that_do_not_fit_raise(shapes, design, message):
    with pytest.raises(ValueError, match=message):
        estimate(*(np.zeros(shape) for shape in shapes), design)
