"""A benchmark's report: one page, and the same numbers as Markdown, LaTeX and CSV."""

import csv
import io
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
from nnunet_topomae.benchmark.jobs import Job
from nnunet_topomae.benchmark.metrics import METRICS
from nnunet_topomae.benchmark.recipes import NOT_AVAILABLE
from nnunet_topomae.benchmark.report import Picture, format_number, render
from nnunet_topomae.benchmark.spec import BenchmarkSpec

DIGITS = {"dice": 4, "hd95": 2, "nsd": 4}
LABELS = {"dice": "Dice", "hd95": "HD95 mm", "nsd": "NSD"}


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


def titles_of(results: Mapping[str, Any]) -> dict[str, str]:
    """Titles of the recipes."""
    return {name: recipe["title"] for name, recipe in results["recipes"].items()}


def table_key(table: Mapping[str, Any]) -> str:
    """Short name of a table, also of its figures' files."""
    share = "" if table["fraction"] == 1 else f"_labels{round(100 * table['fraction'])}"
    return f"{table['dataset']}{share}"


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


def markdown(results: Mapping[str, Any], pictures: Mapping[str, Sequence[tuple[str, Picture]]]) -> str:
    """The report as Markdown, with figures as files beside it."""
    titles = titles_of(results)
    lines = [f"# Benchmark {results['name']}", ""]
    lines += [
        f"{len(results['folds'])} folds, {len(results['seeds'])} seeds, {results['configuration']}, "
        f"{results['device']}; {results['machine']['processor']}, {results['machine']['cores']} cores.",
        "",
    ]
    if results["missing"]:
        lines += [f"**Not complete: {len(results['missing'])} jobs are missing.**", ""]
    for table in results["tables"]:
        lines += [f"## {_heading(table)}", "", *_score_rows(table, titles), ""]
        lines += _comparison_rows(table, titles, results["baseline"])
        for name, picture in pictures.get(table_key(table), ()):
            lines += [f"![{picture.alt}]({name})", "", picture.caption, ""]
    lines += ["## Versions", "", ", ".join(f"{name} {value}" for name, value in results["versions"].items()), ""]
    return "\n".join(lines)


def _heading(table: Mapping[str, Any]) -> str:
    share = "" if table["fraction"] == 1 else f", {100 * table['fraction']:g} % of the labels"
    return f"{table['dataset']}{share}"


def _score_rows(table: Mapping[str, Any], titles: Mapping[str, str]) -> list[str]:
    rows = [
        "| recipe | Dice | SD over seeds | HD95 mm | NSD | missed | parameters | hours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in table["rows"].items():
        mean, spread = row["mean"], row["seed_sd"]
        cells = [
            titles[name],
            format_number(mean["dice"], 4),
            format_number(spread["dice"], 4),
            format_number(mean["hd95"], 2),
            format_number(mean["nsd"], 4),
            format_number(mean["missed"], 1),
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['cost']['hours']:.2f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    for item in table["published"]:
        hd95 = format_number(item["hd95"], 2)
        rows.append(f"| {item['system']} (published) | {item['dice'] / 100:.4f} | | {hd95} | | | | |")
    return rows


def _comparison_rows(table: Mapping[str, Any], titles: Mapping[str, str], baseline: str) -> list[str]:
    lines: list[str] = []
    for metric, found in table["comparisons"].items():
        lines += [
            f"{LABELS[metric]}, difference to {titles[baseline]}:",
            "",
            "| recipe | difference | 95 % interval | p (Holm) | effect | wins | paper's t-test p | verdict |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, c in found.items():
            cells = [
                titles[name],
                f"{c['difference']:+.{DIGITS[metric]}f}",
                f"{c['low']:+.{DIGITS[metric]}f} to {c['high']:+.{DIGITS[metric]}f}",
                f"{c['adjusted_p']:.3g}",
                f"{c['rank_biserial']:+.2f}",
                f"{100 * c['win_rate']:.0f} %",
                "–" if c["paper_p"] is None else f"{c['paper_p']:.3g}",
                c["verdict"],
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def latex(results: Mapping[str, Any]) -> str:
    """Tables of Dice by structure, in the paper's layout."""
    titles = titles_of(results)
    parts = []
    for table in results["tables"]:
        if not table["rows"]:
            continue
        structures = list(next(iter(table["rows"].values()))["structures"])
        lines = [
            f"% {_escape(_heading(table))}",
            "\\begin{tabular}{l" + "r" * (len(structures) + 2) + "}",
            "\\hline",
            " & ".join(["Method", "Dice (\\%)", "HD95 (mm)", *map(_escape, structures)]) + " \\\\",
            "\\hline",
        ]
        best = max(row["mean"]["dice"] for row in table["rows"].values())
        for name, row in table["rows"].items():
            dice = f"{100 * row['mean']['dice']:.2f}"
            cells = [_escape(titles[name]), f"\\textbf{{{dice}}}" if row["mean"]["dice"] == best else dice]
            cells.append(format_number(row["mean"]["hd95"], 2))
            values = [row["structures"][structure]["dice"] for structure in structures]
            cells += ["–" if value is None else f"{100 * value:.2f}" for value in values]
            lines.append(" & ".join(cells) + " \\\\")
        parts.append("\n".join([*lines, "\\hline", "\\end{tabular}", ""]))
    return "\n".join(parts)


def _escape(text: str) -> str:
    return "".join(f"\\{character}" if character in "&%$#_{}" else character for character in text)


def scores_csv(spec: BenchmarkSpec, jobs: Sequence[Job], partial: bool) -> str:
    """Every metric of every structure, case and training, a line each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "recipe", "fraction", "fold", "seed", "case", "structure", *METRICS])
    for entry in collect(spec, jobs, partial):
        where = [entry.dataset, entry.recipe, entry.fraction, entry.fold, entry.seed]
        for case, structures in entry.scores.items():
            for structure, score in structures.items():
                writer.writerow([*where, case, structure, *(score[metric] for metric in METRICS)])
    return text.getvalue()
