"""How often a benchmark's statistics find a difference where there is none, in simulated benchmarks.

    python studies/statistics_coverage.py [--json studies/statistics.json]        # two minutes
    python studies/statistics_coverage.py --quick                                   # ten simulations each: seconds

Two recipes that are equally good on average: cases differ in difficulty (SD 0.05), every training has a luck of its own
(0.01), and every score has noise (0.02). In the second half of the table each recipe also suits some cases better than
others (0.03), so that the cases at hand, of many possible ones, favour one by chance. Nominal level 5 %.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import wilcoxon

from nnunet_topomae.evaluation import statistics
from nnunet_topomae.files import write_json

DESIGNS = [(8, 2), (12, 2), (12, 5), (40, 2), (40, 5), (200, 2), (200, 5)]
REPETITIONS = 2000
CASE_SD, SEED_SD, NOISE_SD, SUITS_SD = 0.05, 0.01, 0.02, 0.03


def simulate(generator: np.random.Generator, cases: int, seeds: int, suits: float) -> dict[str, np.ndarray]:
    """Scores of two recipes without a difference."""
    difficulty = 0.8 + CASE_SD * generator.standard_normal((cases, 1))
    return {
        name: difficulty
        + suits * generator.standard_normal((cases, 1))
        + SEED_SD * generator.standard_normal((1, seeds))
        + NOISE_SD * generator.standard_normal((cases, seeds))
        for name in ("baseline", "recipe")
    }


def rates(cases: int, seeds: int, suits: float, repetitions: int = REPETITIONS) -> dict[str, float]:
    """Share of simulated benchmarks in which each way finds a difference."""
    generator = np.random.default_rng([cases, seeds])
    found = dict.fromkeys(("ours", "Wilcoxon, case means", "Wilcoxon, case x seed", "t-test, seed means"), 0)
    for _ in range(repetitions):
        scores = simulate(generator, cases, seeds, suits)
        comparison = statistics.compare(scores, "baseline", generator)["recipe"]
        found["ours"] += comparison.shown
        found["Wilcoxon, case means"] += comparison.p < statistics.LEVEL
        pooled = wilcoxon((scores["recipe"] - scores["baseline"]).ravel()).pvalue
        found["Wilcoxon, case x seed"] += pooled < statistics.LEVEL
        found["t-test, seed means"] += comparison.paper_p < statistics.LEVEL
    return {name: count / repetitions for name, count in found.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few simulations: shows that the command works")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    repetitions, statistics.RESAMPLES = (10, 50) if args.quick else (REPETITIONS, 500)
    table = [
        {"suits": suits, "cases": cases, "seeds": seeds, **rates(cases, seeds, suits, repetitions)}
        for suits in (0.0, SUITS_SD)
        for cases, seeds in DESIGNS
    ]
    sys.stdout.write("| " + " | ".join(table[0]) + " |\n|" + "---|" * len(table[0]) + "\n")
    for row in table:
        facts = [f"{row['suits']:g}", str(row["cases"]), str(row["seeds"])]
        cells = [*facts, *(f"{value:.3f}" for value in list(row.values())[3:])]
        sys.stdout.write("| " + " | ".join(cells) + " |\n")
    if args.json:
        write_json(args.json, {"repetitions": repetitions, "rates": table})


if __name__ == "__main__":
    main()
