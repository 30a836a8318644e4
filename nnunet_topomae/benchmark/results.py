"""Scores and provenance of a finished demo, as plain JSON values."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nnunet_topomae.benchmark.layout import MODELS, SCORES_FILE, DemoFolders, DemoSettings
from nnunet_topomae.benchmark.steps import StepRecord
from nnunet_topomae.datasets.phantom import LABELS
from nnunet_topomae.evaluation.metrics import StructureScore, summarise
from nnunet_topomae.files import strict_json, write_json
from nnunet_topomae.nnunet.names import PRETRAINER
from nnunet_topomae.nnunet.provenance import describe_machine, describe_versions
from nnunet_topomae.nnunet.scoring import score_folder


def write_scores(folders: DemoFolders) -> None:
    """Score both models on the held-out cases."""
    truth = folders.raw / folders.dataset / "labelsTs"
    scores = {model: score_folder(truth, folders.prediction(model), LABELS) for model in MODELS}
    plain = {
        model: {case: {name: asdict(score) for name, score in structures.items()} for case, structures in cases.items()}
        for model, cases in scores.items()
    }
    write_json(folders.out / SCORES_FILE, plain)


def summarise_model(cases: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Means over the cases of one model, and as nnU-Net takes it the mean of these over the structures."""
    names = list(next(iter(cases.values())))
    mean = {name: summarise([StructureScore(**case[name]) for case in cases.values()]) for name in names}
    foreground = {key: sum(mean[name][key] for name in names) / len(names) for key in ("dice", "hd95")}
    foreground["missed"] = sum(mean[name]["missed"] for name in names)
    return {"mean": mean, "foreground_mean": foreground, "cases": cases}


def collect_results(
    folders: DemoFolders, settings: DemoSettings, device: str, records: Sequence[StepRecord]
) -> dict[str, Any]:
    """Everything worth keeping, as strict JSON: undefined numbers are null."""
    scores = json.loads((folders.out / SCORES_FILE).read_text())
    models = {model: {"trainer": MODELS[model], **summarise_model(cases)} for model, cases in scores.items()}
    summary = json.loads((folders.fold(PRETRAINER) / "validation" / "summary.json").read_text())
    results = {
        "settings": asdict(settings),
        "device": device,
        "models": models,
        "reconstruction": summary["reconstruction"],
        "steps": [asdict(record) for record in records],
        "environment": {name: value.replace(str(folders.out), "$OUT") for name, value in folders.environment().items()},
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    return strict_json(results)  # type: ignore[no-any-return]
