"""From the scores of trainings to the numbers of a report."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from nnunet_topomae.benchmark.collect import Entry
from nnunet_topomae.benchmark.compared import COMPARED
from nnunet_topomae.benchmark.contrasts import (
    case_table,
    compared_metrics,
    correct_together,
    make_contrasts,
    make_design,
)
from nnunet_topomae.benchmark.exchange import read_known
from nnunet_topomae.benchmark.jobs import Job
from nnunet_topomae.benchmark.primary import describe
from nnunet_topomae.benchmark.results import Amount, Contrast, Cost, JobRecord, Results, Row, Table
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.store import without_folders
from nnunet_topomae.evaluation.metrics import SUMMARISED, StructureScore, summarise
from nnunet_topomae.evaluation.statistics import rank_shares
from nnunet_topomae.nnunet.provenance import commit_of_version

COUNTS = ("missed", "spurious")
# Listed for every case and structure.
LISTED = ("dice", "hd95", "betti_error")
SEED = 20241121


def summarise_recipe(entries: Sequence[Entry], held_out: bool) -> Row:
    """Means of one recipe: over cases where a metric is defined, as nnU-Net takes them, then structures, then seeds.

    Args:
        entries: trainings of the recipe on one data set with one share of the labels: every fold with every seed.
        held_out: every training has scored all cases, so that counts are means over the folds too.
    """
    times = len({entry.job.fold for entry in entries}) if held_out else 1
    seeds = sorted({entry.job.seed for entry in entries})
    structures = list(next(iter(entries[0].scores.values())))
    per_seed = [
        {
            name: _summarise(
                [case[name] for entry in entries if entry.job.seed == seed for case in entry.scores.values()], times
            )
            for name in structures
        }
        for seed in seeds
    ]
    overall = {
        metric: [
            float((sum if metric in COUNTS else _nanmean)([means[name][metric] for name in structures]))
            for means in per_seed
        ]
        for metric in SUMMARISED
    }
    by_case = _by_case(entries)
    return Row(
        structures={
            name: {metric: _nanmean([means[name][metric] for means in per_seed]) for metric in SUMMARISED}
            for name in structures
        },
        mean={metric: _nanmean(values) for metric, values in overall.items()},
        seed_sd={m: float(np.std(v, ddof=1)) if len(v) > 1 else None for m, v in overall.items()},
        training_sd=_training_sd(entries),
        cases=len(by_case),
        by_case=by_case,
        has_absent=any(
            np.isnan(score.dice) for entry in entries for case in entry.scores.values() for score in case.values()
        ),
        parameters=entries[0].parameters,
        macs=entries[0].macs,
        cost=_cost(entries),
        ended_early=sorted({text for entry in entries for text in entry.ended_early}),
    )


def _summarise(scores: Sequence[StructureScore], times: int) -> dict[str, float | int]:
    """Means of one structure and seed; counts are divided by how many times every case was scored."""
    return {name: value / times if name in COUNTS else value for name, value in summarise(scores).items()}


def _training_sd(entries: Sequence[Entry]) -> float | None:
    """Standard deviation of the mean Dice of single trainings of one fold; None with one seed."""
    folds: dict[int, list[float]] = {}
    for entry in entries:
        dice = [score.dice for structures in entry.scores.values() for score in structures.values()]
        folds.setdefault(entry.job.fold, []).append(_nanmean(dice))
    variances = [np.var(means, ddof=1) for means in folds.values() if len(means) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else None


def _by_case(entries: Sequence[Entry]) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, list[Mapping[str, StructureScore]]] = {}
    for entry in entries:
        for case, structures in entry.scores.items():
            found.setdefault(case, []).append(structures)
    return {
        case: {
            name: {metric: _nanmean([getattr(one[name], metric) for one in several]) for metric in LISTED}
            for name in several[0]
        }
        for case, several in sorted(found.items())
    }


def _nanmean(values: Sequence[float | int]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _cost(entries: Sequence[Entry]) -> Cost:
    both = [[done for done in (entry.training, entry.pretraining) if done] for entry in entries]
    return Cost(
        hours=float(np.mean([sum(done["seconds"] for done in parts) for parts in both])) / 3600,
        pretraining_hours=float(np.mean([(entry.pretraining or {}).get("seconds", 0.0) for entry in entries])) / 3600,
        # A job that was not measured has booked 0.
        cpu_hours=None
        if any(done["cpu_seconds"] == 0 for parts in both for done in parts)
        else float(np.mean([sum(done["cpu_seconds"] for done in parts) for parts in both])) / 3600,
        attempts=float(np.mean([sum(done.get("attempts", 1) for done in parts) for parts in both])),
        steps=_amount([entry.steps for entry in entries]),
        pretraining_steps=_amount([entry.pretraining_steps for entry in entries]),
        total_macs=_amount([entry.total_macs for entry in entries]),
        gpu_bytes=max((entry.gpu_bytes for entry in entries if entry.gpu_bytes is not None), default=None),
        peak_process_bytes=float(max(done["peak_process_bytes"] for parts in both for done in parts)),
    )


def _amount(values: Sequence[float | int | None]) -> Amount | None:
    """Mean and extremes; None where a value is not known."""
    known = [value for value in values if value is not None]
    return Amount(float(np.mean(known)), float(min(known)), float(max(known))) if len(known) == len(values) else None


def build_results(spec: BenchmarkSpec, jobs: Sequence[Job], entries: Sequence[Entry]) -> Results:
    """Everything that a report shows.

    Args:
        spec: the benchmark.
        jobs: its jobs.
        entries: its finished trainings.
    """
    published = json.loads((files("nnunet_topomae.reports") / "published.json").read_text(encoding="utf-8"))
    tables = []
    for dataset in sorted({entry.job.dataset for entry in entries}):
        for fraction in sorted({entry.job.fraction for entry in entries}, reverse=True):
            chosen = [entry for entry in entries if (entry.job.dataset, entry.job.fraction) == (dataset, fraction)]
            # The paper's systems were trained with all labels.
            preset = spec.paper.get(str(int(chosen[0].job.dataset_id))) if chosen and fraction == 1 else None
            tables.append(_table(spec, dataset, fraction, chosen, published.get(preset, []) if preset else []))
    done = read_known(spec, jobs).done
    origins = {made_by: facts["provenance"] for made_by, facts in done.items() if "provenance" in facts}
    trainings = [origins.get(job.fingerprint, {}) for job in jobs if job.kind == "train" and job.fingerprint in done]
    made = [part for origin in origins.values() for part in _made_with(origin)]
    late = [
        describe(origin["primary"]) for origin in trainings if "primary" in origin and origin["primary"] != spec.stated
    ]
    return Results(
        spec,
        correct_together(tables, spec),
        [_job_record(spec, job, done.get(job.fingerprint, {})) for job in jobs],
        published["source"],
        _merge([part["machine"] for part in made]),
        _merge([{**part["versions"], "commit": _commit(part)} for part in made]),
        dict(Counter(late)),
        sum("primary" not in origin for origin in trainings) if spec.stated else 0,
        sum("planned" in origin and origin["planned"] != spec.planned for origin in trainings),
        sum("planned" not in origin for origin in trainings),
    )


def _made_with(provenance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Versions, commit and machine of the first attempt, and of later ones where they were others."""
    return [provenance, *provenance.get("later", [])]


def _commit(made_with: Mapping[str, Any]) -> str:
    """Earlier versions did not record the commit of an installed package."""
    version = made_with["versions"].get("nnunet-topomae", "")
    return made_with["commit"] or commit_of_version(version) or "not known"


def _machines(entries: Sequence[Entry]) -> list[str]:
    """Machines of trainings and pre-trainings; one whose system was updated is the same machine."""
    done = [done for entry in entries for done in (entry.training, entry.pretraining) if done]
    origins = [one["provenance"] for one in done if "provenance" in one]
    machines = [part["machine"] for origin in origins for part in _made_with(origin)]
    found = (", ".join(f"{key} {value}" for key, value in one.items() if key != "system") for one in machines)
    return list(dict.fromkeys(found))


def _merge(tables: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """All values of several tables by key, each once, with a semicolon between them."""
    keys = dict.fromkeys(key for table in tables for key in table)
    return {key: "; ".join(dict.fromkeys(table[key] for table in tables if key in table)) for key in keys}


def _job_record(spec: BenchmarkSpec, job: Job, done: Mapping[str, Any]) -> JobRecord:
    # Earlier versions recorded the folders as they were.
    commands = [without_folders(command, spec) for command in done.get("commands", [])]
    return JobRecord(job.name, job.fingerprint, done.get("seconds"), commands)


def _table(
    spec: BenchmarkSpec, dataset: str, fraction: float, entries: Sequence[Entry], published: Sequence[Mapping[str, Any]]
) -> Table:
    """One data set with one share of the labels: all complete recipes, compared with the baselines."""
    by_recipe: dict[str, list[Entry]] = {}
    for recipe in spec.recipes:
        of_recipe = [entry for entry in entries if entry.job.recipe == recipe.name]
        if len(of_recipe) == len(spec.folds) * len(spec.seeds):
            by_recipe[recipe.name] = of_recipe
    generator = np.random.default_rng(SEED)
    contrasts: list[Contrast] = []
    ranks: dict[str, Mapping[str, Sequence[float]]] = {}
    values: dict[str, Mapping[str, Sequence[Sequence[float]]]] = {}
    cases: list[str] = []
    patients: set[str] = set()
    for metric in compared_metrics(spec) if by_recipe else ():
        found = {name: case_table(of_recipe, metric, spec.held_out) for name, of_recipe in by_recipe.items()}
        first = next(iter(found.values()))
        design = make_design(spec, dataset, first, fraction)
        cases, patients = first.cases, set(design.patients or ())
        scores = {name: one.scores for name, one in found.items()}
        values[metric] = {name: one.tolist() for name, one in scores.items()}
        contrasts += make_contrasts(spec, metric, scores, design, fraction)
        # One training per fold cannot be drawn again.
        if len(scores) > 1 and first.scores.shape[1] > 1:
            ranks[metric] = rank_shares(scores, generator, COMPARED[metric].higher_is_better, design)
    return Table(
        dataset=dataset,
        fraction=fraction,
        rows={name: summarise_recipe(of_recipe, spec.held_out) for name, of_recipe in by_recipe.items()},
        incomplete=[recipe.name for recipe in spec.recipes if recipe.name not in by_recipe],
        contrasts=contrasts,
        ranks=ranks,
        cases=cases,
        patients=len(patients),
        trainings=len(spec.folds) * len(spec.seeds),
        values=values,
        published=published,
        machines=_machines([entry for of_recipe in by_recipe.values() for entry in of_recipe]),
    )
