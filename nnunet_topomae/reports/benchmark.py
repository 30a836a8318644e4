"""A benchmark's report: one page, and the same numbers in other formats."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nnunet_topomae
from nnunet_topomae.benchmark.collect import Entry, collect
from nnunet_topomae.benchmark.compared import COMPARED
from nnunet_topomae.benchmark.jobs import Job
from nnunet_topomae.benchmark.recipes import NOT_AVAILABLE
from nnunet_topomae.benchmark.results import Results, Table
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.tables import build_results
from nnunet_topomae.files import write_text
from nnunet_topomae.reports import statements
from nnunet_topomae.reports.benchmark_plots import (
    case_figure,
    difference_figure,
    fraction_figure,
    structure_figure,
)
from nnunet_topomae.reports.case_files import CaseFiles, RankedCase, find_case_files
from nnunet_topomae.reports.formats import (
    beside_published,
    latex,
    markdown,
    published_notes,
    scores_csv,
)
from nnunet_topomae.reports.headline import headlines
from nnunet_topomae.reports.overlays import case_picture
from nnunet_topomae.reports.page import Picture, render
from nnunet_topomae.reports.plots import data_uri, draw
from nnunet_topomae.reports.statements import exploratory_contrasts, primary_statements
from nnunet_topomae.reports.training_panels import make_training_panels
from nnunet_topomae.reports.viewer import read_niivue, write_viewer

# More lines than this are left to scores.csv.
LISTED_LINES = 200


def write_benchmark_report(
    spec: BenchmarkSpec,
    jobs: Sequence[Job],
    folder: Path,
    partial: bool = False,
    images: bool = False,
    niivue: Path | None = None,
) -> tuple[Results, list[Path]]:
    """Write `report.html`, `report.md`, `tables.tex`, `scores.csv`, `results.json` and the figures as SVG.

    Args:
        spec: the benchmark.
        jobs: its jobs.
        folder: where to; files of these names are replaced.
        partial: report what is there although jobs are missing.
        images: show images of cases in the page.
        niivue: NiiVue's program, to write a page with all slices of each of these cases; needs ``images``.

    Returns:
        what was reported, and the files.

    Raises:
        ValueError: jobs are not done and ``partial`` was not asked for, or nothing is done; or ``niivue`` is something
            else.
        FileNotFoundError: ``niivue`` does not exist.
    """
    program = None if niivue is None else read_niivue(niivue)
    entries = collect(spec, jobs, partial)
    results = build_results(spec, jobs, entries)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {table.key: list(_write_figures(results, table, folder)) for table in results.tables}
    worst = {table.key: worst_cases(table, spec.baseline) for table in results.tables}
    of_table = {table.key: _entries_of(table, entries) for table in results.tables}
    shown = {key: list(find_case_files(spec, of_table[key], worst[key])) for key in worst} if images else {}
    viewers = {} if program is None else _viewers(shown, results.titles, program, folder)
    page = render(
        "benchmark.html.j2",
        overlays={key: _overlays(cases, results.titles) for key, cases in shown.items()},
        viewers={key: [(text, path.name) for text, path in pages] for key, pages in viewers.items()},
        results=results,
        primary=primary_statements(results),
        exploratory=exploratory_contrasts,
        statements=statements,
        headlines=headlines(results),
        metrics=COMPARED,
        pictures=pictures,
        beside={table.key: beside_published(results, table) for table in results.tables},
        notes=published_notes,
        not_available=NOT_AVAILABLE,
        worst=worst,
        trainings={key: make_training_panels(spec, found, images) for key, found in of_table.items()},
        listed_lines=LISTED_LINES,
        version=nnunet_topomae.__version__,
    )
    contents = {
        "report.html": page,
        "report.md": markdown(results, pictures),
        "tables.tex": latex(results),
        "scores.csv": scores_csv(entries),
        "results.json": json.dumps(results.to_json(), indent=1, allow_nan=False) + "\n",
    }
    for name, text in contents.items():
        write_text(folder / name, text)
    written = [*(folder / name for name in contents), *(folder / name for of in pictures.values() for name, _ in of)]
    return results, [*written, *(path for pages in viewers.values() for _, path in pages)]


def _entries_of(table: Table, entries: Sequence[Entry]) -> list[Entry]:
    """Trainings of a table's complete recipes."""
    return [
        entry
        for entry in entries
        if (entry.job.dataset, entry.job.fraction) == (table.dataset, table.fraction) and entry.job.recipe in table.rows
    ]


def _write_figures(results: Results, table: Table, folder: Path) -> Iterator[tuple[str, Picture]]:
    """Write a table's figures as SVG; yields their files' names and the pictures for the page."""
    for name, figure, alt, caption in _figures(results, table):
        content = draw(figure)
        write_text(folder / f"{name}.svg", content.decode())
        yield f"{name}.svg", Picture(data_uri(content), alt, caption)


def _overlays(cases: Sequence[CaseFiles], titles: Mapping[str, str]) -> list[Picture]:
    return [case_picture(files, titles[files.recipe]) for files in cases]


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


def _figures(results: Results, table: Table) -> Iterator[tuple[str, Any, str, str]]:
    """Name, figure, description and caption of every figure of a table."""
    titles, key = results.titles, table.key
    if not table.rows:
        return
    stems = {"dice": key}
    if "betti_error" in table.values:
        stems["betti_error"] = f"{key}_betti_error"
    for metric, stem in stems.items():
        compared = {titles[name]: found for name, found in table.compared(metric, results.spec.baseline).items()}
        if not compared:
            continue
        baseline, label = titles[results.spec.baseline], f"mean {COMPARED[metric].label}"
        yield (
            f"{stem}_differences",
            difference_figure(compared, label, baseline),
            f"Differences of {label} to {baseline} with 95 % intervals",
            _shown_means(results, table, metric),
        )
    yield (
        f"{key}_cases",
        case_figure(table.values["dice"], titles, "mean Dice of a case"),
        "Dots of every case's mean Dice for every recipe, joined by lines, with a bar at the mean",
        "A dot is a case, averaged over structures and seeds; lines join the same case.",
    )
    yield (
        f"{key}_structures",
        structure_figure(table.rows, titles),
        f"Dots of {'Dice, HD95 and Betti error' if len(stems) > 1 else 'Dice and HD95'} for every case, structure and "
        "recipe, with a bar at the mean",
        "A dot is a case, averaged over seeds; a bar is the mean over the cases.",
    )
    for metric, stem in stems.items() if table.fraction == 1 else ():
        curves, label = _fraction_curves(results, table.dataset, metric), f"mean {COMPARED[metric].label}"
        if all(len(curve) == 1 for curve in curves.values()):
            continue
        yield (
            f"{stem}_labels",
            fraction_figure(curves, titles, label),
            f"Curves of {label} against the share of labelled training cases",
            "Bands: standard deviation over seeds. With a part of the labels, every seed has labelled cases of its own."
            if len(results.spec.seeds) > 1
            else "No bands: with one seed, nothing is known about how much the means vary from seed to seed.",
        )


def _shown_means(results: Results, table: Table, metric: str) -> str:
    """Caption of the differences to the baseline: what counts as shown."""
    caption = (
        "Dark and filled where a difference is shown: p, corrected for all exploratory comparisons of the report, is "
        "below 0.05."
    )
    drawn = (one for one in table.contrasts if (one.metric, one.baseline) == (metric, results.spec.baseline))
    primary = next((one.recipe for one in drawn if one.primary), None)
    if primary is None:
        return caption
    several = "corrected for the data sets only" if len(results.spec.datasets) > 1 else "not corrected"
    return f"{caption} “{results.titles[primary]}” is the primary comparison: its p is {several}."


def _fraction_curves(results: Results, dataset: str, metric: str) -> dict[str, dict[float, tuple[float, float | None]]]:
    curves: dict[str, dict[float, tuple[float, float | None]]] = {}
    for table in results.tables:
        if table.dataset == dataset:
            for name, row in table.rows.items():
                curves.setdefault(name, {})[table.fraction] = (row.mean[metric], row.seed_sd[metric])
    return curves


def worst_cases(table: Table, baseline: str) -> list[RankedCase]:
    """The worst and the median case of every recipe by mean Dice, with the baseline's value of the same case.

    Args:
        table: one data set with one share of the labels.
        baseline: name of the recipe to compare with; if the table does not have it, its values are None.
    """
    rows = []
    of_baseline = table.values.get("dice", {}).get(baseline)
    for name, values in table.values.get("dice", {}).items():
        means = [sum(of_seeds) / len(of_seeds) for of_seeds in values]
        order = sorted(range(len(means)), key=lambda index: (means[index], table.cases[index]))
        for rank, index in (("worst", order[0]), ("median", order[(len(order) - 1) // 2])):
            reference = None if of_baseline is None else sum(of_baseline[index]) / len(of_baseline[index])
            rows.append(RankedCase(name, rank, table.cases[index], means[index], reference))
    return rows
