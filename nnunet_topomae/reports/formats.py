"""A benchmark's numbers as Markdown, LaTeX and CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_topomae.benchmark.collect import Entry
from nnunet_topomae.benchmark.compared import COMPARED
from nnunet_topomae.benchmark.results import Results, Table
from nnunet_topomae.evaluation.metrics import METRICS
from nnunet_topomae.reports.page import Picture, format_number, format_p
from nnunet_topomae.reports.statements import (
    PENDING,
    amount,
    caveats,
    cost_notes,
    exploratory_contrasts,
    extent,
    heading,
    interval,
    multiply_adds,
    primary_of,
    primary_statements,
    signed,
)


def markdown(results: Results, pictures: Mapping[str, Sequence[tuple[str, Picture]]]) -> str:
    """The report as Markdown, with figures as files in the same folder.

    Args:
        results: everything that the report says in numbers.
        pictures: file name and picture of every figure, by `key` of the table that they belong to.
    """
    titles = results.titles
    lines = [f"# Benchmark {results.spec.name}", ""]
    lines += [
        f"{results.spec.configuration}, {results.spec.device}; "
        + ", ".join(f"{name} {value}" for name, value in results.machine.items())
        + ".",
        "",
    ]
    if results.missing:
        lines += [f"**Not complete: {len(results.missing)} jobs are missing.** {PENDING}", ""]
    lines += ["## Primary comparison", ""]
    for sentences in primary_statements(results):
        lines += [" ".join([f"**{sentences[0]}**", *sentences[1:]]), ""]
    for table in results.tables:
        lines += [f"## {heading(table)}", ""]
        if table.incomplete:
            lines += [f"**Left out, not complete: {', '.join(titles[name] for name in table.incomplete)}.**", ""]
        lines += [f"{extent(results, table)}.", ""]
        if not table.rows:
            continue
        lines += [*_score_rows(table, titles), "", *_beside_rows(results, table, titles)]
        lines += [*_structure_rows(table, titles), *_cost_rows(table, titles), *_comparison_rows(table, titles)]
        for name, picture in pictures.get(table.key, ()):
            lines += [f"![{picture.alt}]({name})", "", picture.caption, ""]
    lines += ["## Versions", "", ", ".join(f"{name} {value}" for name, value in results.versions.items()), ""]
    return "\n".join(lines)


def _score_rows(table: Table, titles: Mapping[str, str]) -> list[str]:
    betti = "betti_error" in table.values
    rows = [
        "| recipe | Dice | SD over seeds | SD of a training | HD95 mm | NSD "
        f"| {'Betti error | ' if betti else ''}missed | parameters | hours |",
        "|---" * (9 + betti) + "|",
    ]
    for name, row in table.rows.items():
        mean, spread = row.mean, row.seed_sd
        cells = [
            titles[name],
            format_number(mean["dice"], 4),
            format_number(spread["dice"], 4),
            format_number(row.training_sd, 4),
            format_number(mean["hd95"], 2),
            format_number(mean["nsd"], 4),
            *([format_number(mean["betti_error"], 2)] if betti else []),
            format_number(mean["missed"], 1),
            f"{row.parameters / 1e6:.1f} M",
            f"{row.cost.hours:.2f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _cost_rows(table: Table, titles: Mapping[str, str]) -> list[str]:
    lines = [
        "Cost of one training with its pre-training, means over folds and seeds (least–most where they differ), killed "
        "attempts included. Hours are by the clock: pauses and other work of the machine count, in CPU hours they do "
        "not. Starts are those of pre-training and training together. Multiply-adds are those of forward passes:",
        "",
        "| recipe | steps, pre-training | steps, supervised | MACs of a crop | MACs in all | hours "
        "| of it pre-training | CPU hours | starts |",
        "|---" * 9 + "|",
    ]
    for name, row in table.rows.items():
        cost = row.cost
        cells = [
            titles[name],
            amount(cost.pretraining_steps),
            amount(cost.steps),
            "–" if row.macs is None else f"{row.macs / 1e9:.1f} G",
            "–" if cost.total_macs is None else f"{multiply_adds(cost.total_macs)} T",
            f"{cost.hours:.2f}",
            f"{cost.pretraining_hours:.2f}",
            format_number(cost.cpu_hours, 2),
            f"{cost.attempts:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", *(line for note in cost_notes(table) for line in (note, ""))]


def beside_published(results: Results, table: Table) -> list[dict[str, Any]]:
    """The paper's systems in its order, each with the recipe that stands for it; then the recipes without one.

    Args:
        results: of the benchmark.
        table: one of its tables.

    Returns:
        rows with `system`, `recipe`, `published` and `ours`; the last two hold Dice in percent and HD95, or are None.
        Our HD95 is that of the paper's protocol, in voxels. `published` may also hold a `note` on its Dice.
    """
    if not table.published:
        return []
    by_system = {recipe.paper_row: name for name, recipe in results.recipes.items() if name in table.rows}
    systems = {item["system"]: item for item in table.published}
    order = [(system, by_system.get(system)) for system in systems]
    order += [(None, name) for name in table.rows if results.recipes[name].paper_row not in systems]
    return [
        {"system": system, "recipe": name, "published": systems.get(system or ""), "ours": _percent(table, name)}
        for system, name in order
    ]


def published_notes(table: Table) -> list[str]:
    """Footnotes of the published Dice that are marked with an asterisk."""
    return [f"* {item['system']}: {item['note']}." for item in table.published if item.get("note")]


def _percent(table: Table, recipe: str | None) -> dict[str, Any] | None:
    if recipe is None:
        return None
    mean = table.rows[recipe].mean
    return {"dice": 100 * mean["dice"], "hd95": mean["paper_hd95"]}


def _beside_rows(results: Results, table: Table, titles: Mapping[str, str]) -> list[str]:
    found = beside_published(results, table)
    if not found:
        return []
    lines = [
        "Compared with the paper (other splits, hardware and budgets; HD95 by the paper's protocol):",
        "",
        "| published system | recipe | Dice %, published | Dice %, ours | HD95, published | HD95 in voxels, ours |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        values = [
            format_number(None if source is None else source[metric], 2)
            for metric in ("dice", "hd95")
            for source in (row["published"], row["ours"])
        ]
        values[0] += "\\*" if (row["published"] or {}).get("note") else ""
        names = [row["system"] or "–", "–" if row["recipe"] is None else titles[row["recipe"]]]
        lines.append(f"| {' | '.join([*names, *values])} |")
    notes = published_notes(table)
    return [*lines, "", *(["  \n".join(f"\\{note}" for note in notes), ""] if notes else [])]


def _structure_rows(table: Table, titles: Mapping[str, str]) -> list[str]:
    """Dice in percent by structure, as the paper prints it."""
    structures = list(next(iter(table.rows.values())).structures)
    lines = [f"| Dice % | {' | '.join(structures)} |", "|---" * (len(structures) + 1) + "|"]
    for name, row in table.rows.items():
        values = [row.structures[structure]["dice"] for structure in structures]
        cells = [format_number(100 * value, 2) for value in values]
        lines.append(f"| {titles[name]} | {' | '.join(cells)} |")
    return [*lines, ""]


def _comparison_rows(table: Table, titles: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    for metric, baseline, contrasts in exploratory_contrasts(table):
        lines += [
            f"{COMPARED[metric].label}, difference to {titles[baseline]} (exploratory"
            f"{'' if COMPARED[metric].higher_is_better else ', lower is better'}):",
            "",
            "| recipe | difference | 95 % interval | p | p (Holm) | p, fold means | detectable, uncorrected | wins "
            "| paper's t-test p | verdict |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for one in contrasts:
            found = one.found
            cells = [
                titles[one.recipe],
                signed(found.difference, metric),
                interval(found, metric),
                *(format_p(p) for p in (found.p, found.adjusted_p, found.fold_p)),
                format_number(found.detectable, COMPARED[metric].digits),
                f"{100 * found.win_rate:.0f} %",
                format_p(found.paper_p),
                found.verdict,
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
        if primary := primary_of(table, metric, baseline):
            pair = f"{titles[primary.recipe]} against {titles[primary.baseline]}"
            lines += [f"Not in this table: {pair}, see [the primary comparison](#primary-comparison).", ""]
    notes = [f"- {text}" for text in caveats(table)]
    return [*lines, *notes, *([""] if notes else [])]


def latex(results: Results) -> str:
    """Tables of Dice by structure, in the paper's layout; next to its rows, HD95 is that of its protocol, in voxels."""
    titles = results.titles
    parts = []
    for table in results.tables:
        if not table.rows:
            continue
        structures = list(next(iter(table.rows.values())).structures)
        metric, unit = ("paper_hd95", "voxels") if table.published else ("hd95", "mm")
        means = {metric: f"HD95 ({unit})"}
        if "betti_error" in table.values:
            means["betti_error"] = COMPARED["betti_error"].label
        columns = ["Method", "Dice (\\%)", *means.values(), *map(_escape, structures)]
        lines = [
            f"% {_escape(heading(table))}",
            "\\begin{tabular}{l" + "r" * (len(columns) - 1) + "}",
            "\\hline",
            " & ".join(columns) + " \\\\",
            "\\hline",
        ]
        of_baseline = (one for one in table.contrasts if (one.metric, one.baseline) == ("dice", results.spec.baseline))
        shown = {one.recipe: one for one in of_baseline if one.found.shown}
        marks = {name: "$^{\\ddagger}$" if found.primary else "$^{\\dagger}$" for name, found in shown.items()}
        for name, row in table.rows.items():
            spread = row.seed_sd["dice"]
            dice = format_number(100 * row.mean["dice"], 2) + ("" if spread is None else f" $\\pm$ {100 * spread:.2f}")
            cells = [_escape(titles[name]), dice + marks.get(name, "")]
            cells += [format_number(row.mean[key], 2) for key in means]
            values = [row.structures[structure]["dice"] for structure in structures]
            cells += [format_number(100 * value, 2) for value in values]
            lines.append(" & ".join(cells) + " \\\\")
        lines += ["\\hline"] if table.published else []
        for item in table.published:
            mark = "$^*$" if item.get("note") else ""
            cells = [f"{_escape(item['system'])} (published)", f"{item['dice']:.2f}{mark}"]
            cells.append(format_number(item["hd95"], 2))
            lines.append(" & ".join([*cells, *["–"] * (len(columns) - len(cells))]) + " \\\\")
        notes = [_escape(note) for note in published_notes(table)]
        if any(row.seed_sd["dice"] is not None for row in table.rows.values()):
            notes.append("$\\pm$ Standard deviation over seeds.")
        baseline = _escape(titles[results.spec.baseline])
        if not all(one.primary for one in shown.values()):
            notes.append(
                f"$\\dagger$ A difference of Dice to {baseline} is shown (p below 0.05, corrected for all exploratory "
                "comparisons)."
            )
        if any(one.primary for one in shown.values()):
            several = ", corrected for the data sets" if len(results.spec.datasets) > 1 else ", not corrected"
            notes.append(
                f"$\\ddagger$ A difference of Dice to {baseline} is shown (primary comparison; p below 0.05{several})."
            )
        for note in notes:
            lines.append(f"\\multicolumn{{{len(columns)}}}{{l}}{{\\footnotesize {note}}} \\\\")
        parts.append("\n".join([*lines, "\\hline", "\\end{tabular}", ""]))
    return "\n".join(parts)


def _escape(text: str) -> str:
    return "".join(f"\\{character}" if character in "&%$#_{}" else character for character in text)


def scores_csv(entries: Sequence[Entry]) -> str:
    """Every metric of every structure, case and training, one line each.

    Args:
        entries: trainings, in the order of the lines.

    Returns:
        The file's text with a header line; values that are not defined are empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "recipe", "fraction", "fold", "seed", "case", "structure", *METRICS])
    for entry in entries:
        where = [entry.job.dataset, entry.job.recipe, entry.job.fraction, entry.job.fold, entry.job.seed]
        for case, structures in entry.scores.items():
            for structure, score in structures.items():
                writer.writerow([*where, case, structure, *(_cell(getattr(score, metric)) for metric in METRICS)])
    return text.getvalue()


def _cell(value: float | bool) -> str:
    """A score in full; empty where it is not defined."""
    return "" if math.isnan(value) else str(value)
