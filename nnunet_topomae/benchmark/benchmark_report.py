"""A benchmark's report: one page, and the same numbers in other formats."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_topomae.benchmark.benchmark_figures import (
    case_figure,
    difference_figure,
    fraction_figure,
    structure_figure,
)
from nnunet_topomae.benchmark.collect import build_results, collect
from nnunet_topomae.benchmark.figures import data_uri
from nnunet_topomae.benchmark.formats import DIGITS, LABELS, latex, markdown, scores_csv, table_key, titles_of
from nnunet_topomae.benchmark.jobs import Job
from nnunet_topomae.benchmark.recipes import NOT_AVAILABLE
from nnunet_topomae.benchmark.report import Picture, render
from nnunet_topomae.benchmark.spec import BenchmarkSpec


def write_benchmark_report(
    spec: BenchmarkSpec, jobs: Sequence[Job], folder: Path, partial: bool = False, images: Path | None = None
) -> list[Path]:
    """Write `report.html`, `report.md`, `tables.tex`, `scores.csv`, `results.json` and the figures as SVG.

    Args:
        spec: the benchmark.
        jobs: its jobs.
        folder: where to; files of these names are replaced.
        partial: report what is there although jobs are missing.
        images: nnU-Net's folder of raw data, to show slices of cases in the page; None shows none.

    Returns:
        the files.

    Raises:
        ValueError: jobs are not done and ``partial`` was not asked for, or nothing is done.
    """
    results = build_results(spec, jobs, partial)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    pictures: dict[str, list[tuple[str, Picture]]] = {}
    for table in results["tables"]:
        for name, figure, alt, caption in _figures(results, table):
            path = folder / f"{name}.svg"
            figure.savefig(path, format="svg", metadata={"Date": None})
            written.append(path)
            picture = Picture(data_uri(figure), alt, caption)
            pictures.setdefault(table_key(table), []).append((path.name, picture))
    worst = {table_key(table): worst_cases(table, results["baseline"]) for table in results["tables"]}
    page = render(
        "benchmark.html.j2",
        overlays={} if images is None else _overlays(spec, jobs, images, results, worst, partial),
        results=results,
        titles=titles_of(results),
        labels=LABELS,
        digits=DIGITS,
        key=table_key,
        pictures=pictures,
        not_available=NOT_AVAILABLE,
        worst=worst,
    )
    contents = {
        "report.html": page,
        "report.md": markdown(results, pictures),
        "tables.tex": latex(results),
        "scores.csv": scores_csv(spec, jobs, partial),
        "results.json": json.dumps(results, indent=1, allow_nan=False) + "\n",
    }
    for name, text in contents.items():
        temporary = folder / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)
    return [*(folder / name for name in contents), *written]


def _overlays(
    spec: BenchmarkSpec,
    jobs: Sequence[Job],
    raw: Path,
    results: Mapping[str, Any],
    worst: Mapping[str, Sequence[Mapping[str, Any]]],
    partial: bool,
) -> dict[str, list[Picture]]:
    from nnunet_topomae.benchmark.overlays import case_pictures

    entries = collect(spec, jobs, partial)
    pictures = {}
    for table in results["tables"]:
        where = (table["dataset"], table["fraction"])
        chosen = [entry for entry in entries if (entry.dataset, entry.fraction) == where]
        pictures[table_key(table)] = list(case_pictures(spec, jobs, raw, chosen, worst[table_key(table)]))
    return pictures


def _figures(results: Mapping[str, Any], table: Mapping[str, Any]) -> Iterator[tuple[str, Any, str, str]]:
    """Name, figure, description and caption of every figure of a table."""
    titles, key = titles_of(results), table_key(table)
    if not table["rows"]:
        return
    if "dice" in table["comparisons"]:
        compared = {titles[name]: found for name, found in table["comparisons"]["dice"].items()}
        baseline = titles[results["baseline"]]
        yield (
            f"{key}_differences",
            difference_figure(compared, "mean Dice", baseline),
            f"Differences of mean Dice to {baseline} with 95 % intervals",
            "Dark where a difference is shown: several seeds, the interval excludes 0 and Holm's test agrees.",
        )
    yield (
        f"{key}_cases",
        case_figure(table["values"]["dice"], titles, "mean Dice of a case"),
        "Dots of every case's mean Dice for every recipe, joined by lines, with a bar at the mean",
        "A dot is a case, averaged over structures and seeds; lines join the same case.",
    )
    yield (
        f"{key}_structures",
        structure_figure(table["rows"], titles, "dice", "mean Dice"),
        "Bars of mean Dice for every structure and recipe",
        "Means over cases and seeds.",
    )
    curves = _fraction_curves(results, table["dataset"])
    if table["fraction"] == 1 and any(len(curve) > 1 for curve in curves.values()):
        yield (
            f"{key}_labels",
            fraction_figure(curves, titles),
            "Curves of mean Dice against the share of labelled training cases",
            "Bands: standard deviation over seeds, each with cases of its own.",
        )


def _fraction_curves(results: Mapping[str, Any], dataset: str) -> dict[str, dict[float, tuple[float, float]]]:
    curves: dict[str, dict[float, tuple[float, float]]] = {}
    for table in results["tables"]:
        if table["dataset"] == dataset:
            for name, row in table["rows"].items():
                curves.setdefault(name, {})[table["fraction"]] = (row["mean"]["dice"], row["seed_sd"]["dice"] or 0.0)
    return curves


def worst_cases(table: Mapping[str, Any], baseline: str) -> list[dict[str, Any]]:
    """The worst and the median case of every recipe by mean Dice, with the baseline's value of the same case."""
    rows = []
    of_baseline = table["values"].get("dice", {}).get(baseline)
    for name, values in table["values"].get("dice", {}).items():
        means = [sum(of_seeds) / len(of_seeds) for of_seeds in values]
        order = sorted(range(len(means)), key=lambda index: (means[index], table["cases"][index]))
        for rank, index in (("worst", order[0]), ("median", order[(len(order) - 1) // 2])):
            reference = None if of_baseline is None else sum(of_baseline[index]) / len(of_baseline[index])
            rows.append(
                {"recipe": name, "rank": rank, "case": table["cases"][index], "dice": means[index], "base": reference}
            )
    return rows
