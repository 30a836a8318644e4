"""How often a benchmark's statistics find a difference, in simulated benchmarks without and with one.

    python studies/statistics_coverage.py [--json studies/statistics.json]        # six CPU minutes
    python studies/statistics_coverage.py --quick                                   # three simulations per row: seconds

A score is the sum of the recipe's quality, what suits the recipe in this patient, the luck of the training, and noise;
in some rows also of a labelled subset that both recipes share, or of a fold that suits a recipe. The sizes are near
those of docs/results/hippocampus. Every column says how often a test at the nominal level of 5 % finds a difference.
The last line says how often a difference that reports call detectable would be shown.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from scipy.stats import ttest_ind, wilcoxon

from nnunet_topomae.evaluation.nested import Design, Estimate, estimate, student_p
from nnunet_topomae.evaluation.statistics import LEVEL
from nnunet_topomae.files import write_json

REPETITIONS = 20_000
# Simulated at a time.
CHUNK = 1000
NOISE = 0.02


@dataclass(frozen=True)
class Row:
    """A kind of benchmark; standard deviations are those of Dice.

    Attributes:
        what: what is special about it.
        cases: number of cases, over all folds.
        folds: folds of a cross-validation.
        seeds: trainings per fold.
        effect: true difference.
        luck: SD of the trainings of baseline and recipe.
        suits: SD of what suits a recipe in a patient.
        labels: SD of the labelled subset that both recipes share in a fold and seed.
        scans: scans per patient.
        fold: SD of what suits a recipe in the training cases of a fold.
        seed: SD of a luck that all folds of a seed share.
        told: whether the analysis knows the patients.
        held_out: every training scores all cases, instead of those of its fold.
    """

    what: str
    cases: int
    folds: int
    seeds: int
    effect: float = 0.0
    luck: tuple[float, float] = (0.012, 0.008)
    suits: float = 0.01
    labels: float = 0.0
    scans: int = 1
    fold: float = 0.0
    seed: float = 0.0
    told: bool = True
    held_out: bool = False


def each_seeds(what: str, cases: int, folds: int, seeds: Sequence[int], **values: Any) -> list[Row]:
    """One row per number of seeds."""
    return [Row(what, cases, folds, count, **values) for count in seeds]


FEW_LABELS: dict[str, Any] = {"labels": 0.03, "luck": (0.015, 0.015)}
UNEVEN: dict[str, Any] = {"luck": (0.0184, 0.006)}
CALM: dict[str, Any] = {"luck": (0.0054, 0.0037), "fold": 0.005}
TABLES: dict[str, list[Row]] = {
    "no difference": [
        *each_seeds("plain", 10, 5, (2, 5)),
        *each_seeds("plain", 40, 5, (1, 2, 3, 5)),
        *each_seeds("plain", 260, 5, (1, 2, 3)),
        *each_seeds("one fold", 20, 1, (2, 5)),
        *each_seeds("two folds", 20, 2, (2, 5)),
        *each_seeds("uneven luck", 40, 5, (2, 5), **UNEVEN),
        *each_seeds("cases differ more", 40, 5, (2, 5), suits=0.03),
        *each_seeds("shared labels", 40, 5, (2, 3, 5), **FEW_LABELS),
        *each_seeds("shared labels", 260, 5, (2, 3), **FEW_LABELS),
        *each_seeds("shared labels, one fold", 20, 1, (3, 5), **FEW_LABELS),
        *each_seeds("shared labels, two scans a patient", 40, 5, (2, 5), scans=2, **FEW_LABELS),
        *each_seeds("two scans a patient", 40, 5, (2, 3, 5), scans=2, suits=0.02),
        *each_seeds("two scans a patient", 200, 5, (2, 5), scans=2, suits=0.02),
        *each_seeds("folds suit recipes", 40, 5, (1, 2, 3, 5), fold=0.005),
        *each_seeds("folds suit recipes", 260, 5, (2, 5), fold=0.005),
        *each_seeds("shared labels, folds suit recipes", 40, 5, (2, 3), fold=0.005, **FEW_LABELS),
        *each_seeds("calm trainings, folds suit recipes", 40, 5, (2, 3), **CALM),
        *each_seeds("calm trainings, folds suit recipes", 100, 5, (2, 3, 5), **CALM),
        *each_seeds("calm trainings, folds suit recipes", 260, 5, (2, 3), **CALM),
        *each_seeds("shared labels, calm trainings, folds suit recipes", 40, 5, (2, 3), labels=0.03, **CALM),
        *each_seeds("shared labels, calm trainings, folds suit recipes", 260, 5, (2,), labels=0.03, **CALM),
        *each_seeds("held-out cases", 20, 5, (1, 2, 5), held_out=True),
        *each_seeds("held-out cases", 200, 5, (2, 5), held_out=True),
        *each_seeds("held-out cases, shared labels", 20, 5, (2, 5), held_out=True, **FEW_LABELS),
        *each_seeds("held-out cases, folds suit recipes", 40, 5, (2, 5), held_out=True, fold=0.005),
        *each_seeds("held-out cases, calm trainings, folds suit recipes", 40, 5, (2, 3), held_out=True, **CALM),
        *each_seeds("held-out cases, calm trainings, folds suit recipes", 100, 5, (2,), held_out=True, **CALM),
        *each_seeds("held-out cases, calm trainings, folds suit recipes", 200, 5, (2,), held_out=True, **CALM),
    ],
    "a difference": [
        *each_seeds("+1 point", 40, 5, (1, 2, 3, 5), effect=0.01),
        *each_seeds("+1 point", 260, 5, (2, 3, 5), effect=0.01),
        *each_seeds("+2 points", 40, 5, (1, 2, 3, 5), effect=0.02),
        *each_seeds("+2 points, one fold", 20, 1, (2, 5), effect=0.02),
        *each_seeds("+2 points, uneven luck", 40, 5, (2, 5), effect=0.02, **UNEVEN),
        *each_seeds("+2 points, shared labels", 40, 5, (2, 3, 5), effect=0.02, **FEW_LABELS),
        *each_seeds("+2 points, held-out cases", 20, 5, (1, 2, 5), effect=0.02, held_out=True),
        *each_seeds("+2 points, folds suit recipes", 40, 5, (2, 3), effect=0.02, fold=0.005),
    ],
    "no difference, beyond what the analysis covers": [
        *each_seeds("folds suit recipes twice as much", 40, 5, (2, 3, 5), fold=0.01),
        *each_seeds("folds suit recipes three times as much", 40, 5, (2, 3), fold=0.015),
        *each_seeds(
            "shared labels, folds suit recipes three times as much", 40, 5, (3,), **FEW_LABELS | {"fold": 0.015}
        ),
        *each_seeds("two folds, folds suit recipes", 20, 2, (2, 5), fold=0.005),
        *each_seeds("two folds, folds suit recipes", 100, 2, (5,), fold=0.005),
        *each_seeds("two folds, calm trainings, folds suit recipes", 40, 2, (5,), **CALM),
        *each_seeds("three folds, calm trainings, folds suit recipes", 30, 3, (5,), **CALM),
        *each_seeds("a seed's luck is the same in all folds", 40, 5, (1, 2, 3, 5), seed=0.004),
        *each_seeds("a seed's luck, as strong as in our first benchmarks", 40, 5, (1, 2, 3), seed=0.006),
        *each_seeds("two scans a patient, not told", 200, 5, (2, 5), scans=2, suits=0.03, told=False),
    ],
}


def simulate(row: Row, repetitions: int, generator: np.random.Generator) -> ndarray:
    """Scores (repetition, baseline or recipe, case, training); a column is a seed, or a fold and seed if held out."""
    draw = generator.standard_normal
    # Of a fold: its cases, or all of them if held out.
    size = row.cases if row.held_out else row.cases // row.folds
    of_patients = draw((repetitions, 2, 1 if row.held_out else row.folds, size // row.scans))
    luck = np.array(row.luck).reshape(2, 1, 1, 1)
    scores = NOISE * draw((repetitions, 2, row.folds, size, row.seeds))
    scores += row.suits * np.repeat(of_patients, row.scans, axis=3)[..., None]
    scores += luck * draw((repetitions, 2, row.folds, 1, row.seeds))
    scores += row.labels * draw((repetitions, 1, row.folds, 1, row.seeds))
    scores += row.fold * draw((repetitions, 2, row.folds, 1, 1))
    scores += row.seed * draw((repetitions, 2, 1, 1, row.seeds))
    scores[:, 1] += row.effect
    if row.held_out:
        scores = scores.transpose(0, 1, 3, 2, 4)
        return scores.reshape(repetitions, 2, row.cases, row.folds * row.seeds)
    return scores.reshape(repetitions, 2, row.cases, row.seeds)


def design_of(row: Row) -> Design:
    """What the analysis is told."""
    size = row.cases // row.folds
    patients = [str(case // row.scans) for case in range(row.cases)]
    return Design(
        case_folds=None if row.held_out else [fold for fold in range(row.folds) for _ in range(size)],
        training_folds=[fold for fold in range(row.folds) for _ in range(row.seeds)] if row.held_out else None,
        patients=patients if row.scans > 1 and row.told else None,
        paired=row.labels > 0,
    )


def rates(row: Row, repetitions: int) -> tuple[dict[str, float | None], dict[str, float]]:
    """How often each test finds a difference, and whether what a report calls detectable is.

    Returns:
        the share of simulated benchmarks by test, None where a test does not exist; and the median of the `difference`
        that the reports call detectable, with the share of benchmarks in which ours would have `shown` it.
    """
    generator = np.random.default_rng([row.cases, row.folds, row.seeds])
    design = design_of(row)
    found: list[Estimate] = []
    others: list[dict[str, ndarray]] = []
    for start in range(0, repetitions, CHUNK):
        tables = simulate(row, min(CHUNK, repetitions - start), generator)
        found += [estimate(recipe, baseline, design) for baseline, recipe in tables]
        others.append(usual_tests(tables))
    absent = {
        "t-test, fold means": row.folds == 1 or row.held_out,
        "t-test, seed means (the paper's)": row.seeds * (row.folds if row.held_out else 1) == 1,
    }
    p_values = {
        "ours": np.array([one.p for one in found]),
        "t-test, fold means": np.array([one.fold_p for one in found]),
        **{name: np.concatenate([part[name] for part in others]) for name in others[0]},
    }
    shares = {name: None if absent.get(name) else float((p < LEVEL).mean()) for name, p in p_values.items()}
    named = float(np.median([one.detectable() for one in found]))
    moved = [student_p(one.difference - row.effect + named, one.variance, one.freedom) for one in found]
    return shares, {"difference": named, "shown": float((np.array(moved) < LEVEL).mean())}


def usual_tests(tables: ndarray) -> dict[str, ndarray]:
    """The p values of tests that papers use.

    Args:
        tables: scores (repetition, baseline or recipe, case, training).
    """
    differences = tables[:, 1] - tables[:, 0]
    seed_means = tables.mean(axis=2)
    several = tables.shape[-1] > 1
    return {
        "Wilcoxon, case means": wilcoxon(differences.mean(axis=2), axis=1).pvalue,
        "Wilcoxon, case x seed": wilcoxon(differences.reshape(len(tables), -1), axis=1).pvalue,
        "t-test, seed means (the paper's)": ttest_ind(seed_means[:, 1], seed_means[:, 0], axis=1).pvalue
        if several
        else np.full(len(tables), np.nan),
    }


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table as docs/benchmark.md shows it.

    Args:
        rows: of one table of the JSON file.
    """
    names = list(rows[0]["rates"])
    lines = [f"| benchmark | cases | folds x seeds | {' | '.join(names)} |", "|" + "---|" * (3 + len(names))]
    for row in rows:
        cells = ["–" if value is None else f"{value:.3f}" for value in row["rates"].values()]
        first = f"| {row['what']} | {row['cases']} | {row['folds']} x {row['seeds']} | "
        lines.append(first + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three simulations per row: shows that the command works")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    repetitions = 3 if args.quick else REPETITIONS
    tables: dict[str, list[dict[str, Any]]] = {
        title: [asdict(row) | dict(zip(("rates", "detectable"), rates(row, repetitions), strict=True)) for row in rows]
        for title, rows in TABLES.items()
    }
    for title, rows in tables.items():
        sys.stdout.write(f"\n{title}\n\n{to_markdown(rows)}")
    shown = [row["detectable"]["shown"] for row in tables["no difference"]]
    sys.stdout.write(
        f"\nA difference that reports call detectable is shown in {min(shown):.0%} to {max(shown):.0%}, "
        f"median {np.median(shown):.0%}.\n"
    )
    if args.json:
        write_json(args.json, {"repetitions": repetitions, "noise": NOISE, "tables": tables})


if __name__ == "__main__":
    main()
