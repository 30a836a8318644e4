"""A benchmark's report: one page, and the same numbers in other formats."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_topomae.benchmark.collect import build_results, collect
from nnunet_topomae.benchmark.jobs import Job
from nnunet_topomae.benchmark.recipes import NOT_AVAILABLE
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.files import write_text
from nnunet_topomae.reports.benchmark_plots import (
    case_figure,
    difference_figure,
    fraction_figure,
    structure_figure,
)
from nnunet_topomae.reports.case_files import CaseFiles, find_case_files
from nnunet_topomae.reports.formats import (
    DIGITS,
    LABELS,
    beside_published,
    latex,
    markdown,
    published_notes,
    scores_csv,
    table_key,
    titles_of,
)
from nnunet_topomae.reports.overlays import case_picture
from nnunet_topomae.reports.page import Picture, render
from nnunet_topomae.reports.plots import data_uri
from nnunet_topomae.reports.viewer import read_niivue, write_viewer


def write_benchmark_report(
    spec: BenchmarkSpec,
    jobs: Sequence[Job],
    folder: Path,
    partial: bool = False,
    images: Path | None = None,
    niivue: Path | None = None,
) -> list[Path]:
    """Write `report.html`, `report.md`, `tables.tex`, `scores.csv`, `results.json` and the figures as SVG.

    Args:
        spec: the benchmark.
        jobs: its jobs.
        folder: where to; files of these names are replaced.
        partial: report what is there although jobs are missing.
        images: nnU-Net's folder of raw data, to show slices of cases in the page; None shows none.
        niivue: NiiVue's program, to write a page to leaf through each of these cases; needs ``images``.

    Returns:
        the files.

    Raises:
        ValueError: jobs are not done and ``partial`` was not asked for, or nothing is done; or ``niivue`` is something
            else.
        FileNotFoundError: ``niivue`` does not exist.
    """
    program = None if niivue is None else read_niivue(niivue)
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
    shown = {} if images is None else _case_files(spec, jobs, images, results, worst, partial)
    titles = titles_of(results)
    viewers = {} if program is None else _viewers(shown, titles, program, folder)
    written += [path for pages in viewers.values() for _, path in pages]
    page = render(
        "benchmark.html.j2",
        overlays={key: [case_picture(files, titles[files.recipe]) for files in cases] for key, cases in shown.items()},
        viewers={key: [(text, path.name) for text, path in pages] for key, pages in viewers.items()},
        results=results,
        titles=titles,
        labels=LABELS,
        digits=DIGITS,
        key=table_key,
        pictures=pictures,
        beside={table_key(table): beside_published(results, table) for table in results["tables"]},
        notes=published_notes,
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
        write_text(folder / name, text)
    return [*(folder / name for name in contents), *written]


def _viewers(
    shown: Mapping[str, Sequence[CaseFiles]], titles: Mapping[str, str], niivue: str, folder: Path
) -> dict[str, list[tuple[str, Path]]]:
    """Text of the link and page of every case, by table."""
    return {
        key: [
            (
                f"{files.case}, {files.rank} case of {titles[files.recipe]}",
                write_viewer(files, titles[files.recipe], niivue, folder),
            )
            for files in cases
        ]
        for key, cases in shown.items()
    }


def _case_files(
    spec: BenchmarkSpec,
    jobs: Sequence[Job],
    raw: Path,
    results: Mapping[str, Any],
    worst: Mapping[str, Sequence[Mapping[str, Any]]],
    partial: bool,
) -> dict[str, list[CaseFiles]]:
    """Worst and median cases by table."""
    entries = collect(spec, jobs, partial)
    found = {}
    for table in results["tables"]:
        where = (table["dataset"], table["fraction"])
        chosen = [entry for entry in entries if (entry.dataset, entry.fraction) == where]
        found[table_key(table)] = list(find_case_files(spec, jobs, raw, chosen, worst[table_key(table)]))
    return found


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
