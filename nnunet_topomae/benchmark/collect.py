"""From the scores of finished jobs to the numbers of a report."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from numpy import ndarray

from nnunet_topomae.benchmark.jobs import PACKAGES, Job, names
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.store import JobFolder
from nnunet_topomae.benchmark.work import SCORES
from nnunet_topomae.evaluation.metrics import METRICS
from nnunet_topomae.evaluation.statistics import compare, rank_shares
from nnunet_topomae.files import strict_json
from nnunet_topomae.nnunet.provenance import describe_machine, describe_versions

COUNTS = ("missed", "spurious")
# Compared between recipes: value of a structure that is rightly absent, and whether more is better.
COMPARED = {"dice": (1.0, True), "hd95": (0.0, False), "nsd": (1.0, True)}
SEED = 20241121


@dataclass(frozen=True)
class Entry:
    """Scores and cost of one training.

    Attributes:
        dataset: name of the data set.
        recipe: name of the recipe.
        fold: fold.
        seed: seed.
        fraction: share of the labels.
        scores: metrics by case and structure; None where not defined.
        parameters: of the network.
        macs: multiply-accumulate operations of the network on one crop, from the training's log; None if not there.
        gpu_bytes: largest GPU memory of the training and its pre-training; None without a GPU.
        training: `done.json` of the supervised training.
        pretraining: `done.json` of the pre-training, None without one.
    """

    dataset: str
    recipe: str
    fold: int
    seed: int
    fraction: float
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]]
    parameters: int
    macs: float | None
    gpu_bytes: float | None
    training: Mapping[str, Any]
    pretraining: Mapping[str, Any] | None


def collect(spec: BenchmarkSpec, jobs: Sequence[Job], partial: bool = False) -> list[Entry]:
    """Read the scores of all finished jobs.

    Args:
        spec: the benchmark.
        jobs: its jobs.
        partial: take what is there.

    Raises:
        ValueError: jobs are not done, and that was not asked for; or nothing is done.
    """
    scoring = [job for job in jobs if job.kind == "score"]
    missing = [job for job in scoring if not JobFolder.of(job, spec).done()]
    if missing and (not partial or len(missing) == len(scoring)):
        raise ValueError(
            f"{len(missing)} of {len(scoring)} scores are missing: {names(missing)}. Run the benchmark to its end"
            + ("." if partial else ", or report what is there with --partial.")
        )
    return [_read(spec, job) for job in scoring if job not in missing]


def _read(spec: BenchmarkSpec, job: Job) -> Entry:
    folder = JobFolder.of(job, spec)
    folder.check_outputs()
    read = json.loads((folder.path / SCORES).read_text(encoding="utf-8"))
    training, pretraining, plan = job.needs[0], job.need("pretrain"), job.need("plan")
    assert plan is not None
    settings = training.parameters["settings"]
    recipe = job.name.removeprefix(f"{plan.parameters['dataset'][:10]}__").split("__")[0]
    return Entry(
        dataset=plan.parameters["dataset"],
        recipe=recipe,
        fold=training.parameters["fold"],
        seed=settings["finetuning.seed"],
        fraction=settings.get("finetuning.label_fraction", 1.0),
        scores=read["scores"],
        parameters=read["parameters"],
        macs=_from_logs(spec, [training], r"([\d.]+) G MACs", 1e9),
        gpu_bytes=_from_logs(spec, [training, pretraining], r"peak GPU memory ([\d.]+) GB", 1e9),
        training=JobFolder.of(training, spec).done() or {},
        pretraining=JobFolder.of(pretraining, spec).done() if pretraining else None,
    )


def _from_logs(spec: BenchmarkSpec, jobs: Sequence[Job | None], pattern: str, unit: float) -> float | None:
    """The largest number that a pattern finds in the logs of jobs."""
    logs = [JobFolder.of(job, spec).log for job in jobs if job is not None]
    texts = [log.read_text(encoding="utf-8", errors="replace") for log in logs if log.is_file()]
    found = [float(number) * unit for text in texts for number in re.findall(pattern, text)]
    return max(found, default=None)


def case_table(entries: Sequence[Entry], metric: str) -> tuple[list[str], ndarray]:
    """Mean over structures of every case and seed.

    A structure that is rightly absent counts as perfect, so that every case has a value for every recipe.

    Args:
        entries: trainings of one recipe, complete: every fold with every seed.
        metric: one of `COMPARED`.

    Returns:
        names of the cases, and the table (cases, seeds).
    """
    perfect = COMPARED[metric][0]
    seeds = sorted({entry.seed for entry in entries})
    values: dict[str, dict[int, float]] = {}
    for entry in entries:
        for case, structures in entry.scores.items():
            of_structures = [score[metric] if score[metric] is not None else perfect for score in structures.values()]
            values.setdefault(case, {})[entry.seed] = float(np.mean(of_structures))
    cases = sorted(values)
    return cases, np.array([[values[case][seed] for seed in seeds] for case in cases])


def summarise_recipe(entries: Sequence[Entry]) -> dict[str, Any]:
    """Means of one recipe: over cases where a metric is defined, as nnU-Net takes them, then structures, then seeds."""
    seeds = sorted({entry.seed for entry in entries})
    structures = list(next(iter(entries[0].scores.values())))
    per_seed = {
        seed: {
            name: _means([case[name] for entry in entries if entry.seed == seed for case in entry.scores.values()])
            for name in structures
        }
        for seed in seeds
    }
    overall = {
        metric: [
            (np.nansum if metric in COUNTS else _nanmean)([per_seed[seed][name][metric] for name in structures])
            for seed in seeds
        ]
        for metric in METRICS
    }
    return {
        "structures": {
            name: {metric: _nanmean([per_seed[seed][name][metric] for seed in seeds]) for metric in METRICS}
            for name in structures
        },
        "mean": {metric: _nanmean(values) for metric, values in overall.items()},
        "seed_sd": {m: float(np.std(v, ddof=1)) if len(v) > 1 else None for m, v in overall.items()},
        "seeds": seeds,
        "cases": len({case for entry in entries for case in entry.scores}),
        "parameters": entries[0].parameters,
        "macs": entries[0].macs,
        "cost": _cost(entries),
    }


def _means(scores: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    means = {}
    for metric in METRICS:
        values = [float("nan") if score[metric] is None else float(score[metric]) for score in scores]
        means[metric] = float(np.nansum(values)) if metric in COUNTS else _nanmean(values)
    return means


def _nanmean(values: Sequence[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _cost(entries: Sequence[Entry]) -> dict[str, float | None]:
    """Mean cost of a training, its pre-training included. Pre-training is counted in full for every label fraction."""
    both = [[done for done in (entry.training, entry.pretraining) if done] for entry in entries]
    return {
        "hours": float(np.mean([sum(done["seconds"] for done in parts) for parts in both])) / 3600,
        "cpu_hours": float(np.mean([sum(done["cpu_seconds"] for done in parts) for parts in both])) / 3600,
        "gpu_bytes": max((entry.gpu_bytes for entry in entries if entry.gpu_bytes is not None), default=None),
        "peak_process_bytes": float(max(done["peak_process_bytes"] for parts in both for done in parts)),
    }


def build_results(spec: BenchmarkSpec, jobs: Sequence[Job], partial: bool = False) -> dict[str, Any]:
    """Everything that a report shows, as strict JSON."""
    entries = collect(spec, jobs, partial)
    published = json.loads((files("nnunet_topomae.reports") / "published.json").read_text(encoding="utf-8"))
    tables = []
    for dataset in sorted({entry.dataset for entry in entries}):
        for fraction in sorted({entry.fraction for entry in entries}, reverse=True):
            chosen = [entry for entry in entries if (entry.dataset, entry.fraction) == (dataset, fraction)]
            preset = spec.paper.get(str(int(dataset[7:10])))
            tables.append(_table(spec, dataset, fraction, chosen, published.get(preset, []) if preset else []))
    results = {
        "name": spec.name,
        "baseline": spec.baseline,
        "recipes": {recipe.name: {**asdict(recipe), "settings": dict(recipe.settings)} for recipe in spec.recipes},
        "settings": dict(spec.settings),
        "folds": list(spec.folds),
        "seeds": list(spec.seeds),
        "configuration": spec.configuration,
        "device": spec.device,
        "tolerance": spec.tolerance,
        "tables": tables,
        "published_source": published["source"],
        "jobs": {job.name: job.fingerprint for job in jobs},
        "missing": [job.name for job in jobs if not JobFolder.of(job, spec).done()],
        "machine": describe_machine(),
        "versions": {**describe_versions(), **{name: describe_versions().get(name, "") for name in PACKAGES}},
    }
    return strict_json(results)  # type: ignore[no-any-return]


def _table(
    spec: BenchmarkSpec, dataset: str, fraction: float, entries: Sequence[Entry], published: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One data set with one share of the labels: all complete recipes, compared with the baseline."""
    by_recipe: dict[str, list[Entry]] = {}
    for recipe in spec.recipes:
        of_recipe = [entry for entry in entries if entry.recipe == recipe.name]
        if len(of_recipe) == len(spec.folds) * len(spec.seeds):
            by_recipe[recipe.name] = of_recipe
    generator = np.random.default_rng(SEED)
    comparisons: dict[str, Any] = {}
    ranks: dict[str, Any] = {}
    cases: list[str] = []
    values: dict[str, Any] = {}
    for metric, (_, higher) in COMPARED.items():
        found = {name: case_table(of_recipe, metric) for name, of_recipe in by_recipe.items()}
        scores = {name: table for name, (_, table) in found.items()}
        cases = next((names_of for names_of, _ in found.values()), [])
        values[metric] = {name: table.tolist() for name, table in scores.items()}
        if spec.baseline in scores and len(scores) > 1:
            compared = compare(scores, spec.baseline, generator, higher)
            comparisons[metric] = {
                name: {**asdict(c), "shown": c.shown, "verdict": c.verdict} for name, c in compared.items()
            }
            ranks[metric] = rank_shares(scores, generator, higher)
    return {
        "dataset": dataset,
        "fraction": fraction,
        "rows": {name: summarise_recipe(of_recipe) for name, of_recipe in by_recipe.items()},
        "incomplete": [recipe.name for recipe in spec.recipes if recipe.name not in by_recipe],
        "comparisons": comparisons,
        "ranks": ranks,
        "cases": cases,
        "values": values,
        "published": list(published),
    }
