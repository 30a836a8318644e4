"""The page of one training, pre-training or supervised, finished or not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_topomae import __version__
from nnunet_topomae.files import read_table, write_text
from nnunet_topomae.nnunet.names import DATASET_FILE, FINAL_CHECKPOINT
from nnunet_topomae.reports.page import Picture, render
from nnunet_topomae.reports.plots import data_uri
from nnunet_topomae.reports.training_panels import PretrainingPanel, pretraining_panel
from nnunet_topomae.reports.training_plots import measured_curves, training_curves
from nnunet_topomae.training.plots import PLOT_FILE
from nnunet_topomae.training.record import duration, read_epochs, read_facts

REPORT_FILE = "report.html"

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RunPage:
    """What the page of a training shows.

    Attributes:
        title: trainer, data set and fold.
        state: how far the training is.
        facts: about network and cost, in words.
        scores: Dice by structure after nnU-Net's validation; empty before, and for pre-training.
        curves: of a supervised training; None without a record of epochs.
        measured: shares of the gradient and probes; None without any.
        panel: losses and reconstructions of a pre-training; None for a supervised one.
    """

    title: str
    state: str
    facts: Mapping[str, str]
    scores: Mapping[str, float | None]
    curves: Picture | None
    measured: Picture | None
    panel: PretrainingPanel | None


def write_run_report(fold: Path, target: Path | None = None, images: bool = False) -> Path:
    """Write the page of a training; it may be running.

    Args:
        fold: its folder, `DATASET/TRAINER__PLANS__CONFIGURATION/fold_N`.
        target: the page; None puts `report.html` into the folder.
        images: show crops of cases.

    Returns:
        The page.

    Raises:
        ValueError: the target is no file in a folder, or a file of the training is damaged; names it.
    """
    target = target or fold / REPORT_FILE
    if target.is_dir() or not target.parent.is_dir():
        raise ValueError(f"the page cannot be written to {target}: name a file in a folder that exists")
    run = read_run(fold.resolve(), images)
    left_out = run.panel is not None and not images
    write_text(target, render("run.html.j2", run=run, images_left_out=left_out, version=__version__))
    return target


def read_run(fold: Path, images: bool = False) -> RunPage:
    """What there is to show of a training.

    Args:
        fold: its folder.
        images: show crops of cases.
    """
    records = read_epochs(fold)
    pretraining = bool(records) and "total" in records[-1].get("train", {})
    title = f"{fold.parent.name.partition('__')[0]} on {fold.parent.parent.name}, {fold.name.replace('_', ' ')}"
    return RunPage(
        title,
        _state(fold, records),
        _facts(fold, records),
        _scores(fold),
        None if pretraining else _curves(fold, records),
        _measured(records),
        pretraining_panel(title, fold, images, diagrams=images) if pretraining else None,
    )


def _state(fold: Path, records: Records) -> str:
    facts, early = read_facts(fold), read_facts(fold).get("ended_early")
    finished = (fold / FINAL_CHECKPOINT).is_file()
    done, wanted = (records[-1]["epoch"] + 1 if records else 0), _epochs_wanted(fold)
    if not records and (fold / PLOT_FILE).is_file():
        ended = "Finished. " if finished else ""
        return f"{ended}This trainer keeps no record of its epochs; nnU-Net's own plot is below."
    if not records:
        return "Finished." if finished else "No epoch is recorded yet."
    if finished and (early or wanted is None or done >= wanted):
        return f"Ended after {early['epochs']} epochs: {early['reason']}." if early else f"Finished, {done} epochs."
    left = (wanted - done) * records[-1]["seconds"] if wanted else None
    rest = f", about {duration(left)} left at the pace of the last one" if left else ""
    steps = f" with {facts['steps'] // wanted} steps each" if wanted and "steps" in facts else ""
    return f"{done} of {wanted if wanted else 'an unknown number of'} epochs{steps} done{rest}."


def _epochs_wanted(fold: Path) -> int | None:
    """From nnU-Net's own description of the run, which it writes at the start."""
    file = fold / "debug.json"
    wanted = str(read_table(file).get("num_epochs"))
    return int(wanted) if wanted.isdecimal() else None


def _facts(fold: Path, records: Records) -> dict[str, str]:
    names = fold.parent.name.split("__")
    rows = {"plans": names[1], "configuration": names[2]} if len(names) == 3 else {}
    found = read_facts(fold)
    if "parameters" in found:
        rows["parameters"] = f"{found['parameters'] / 1e6:.2f} million"
    if "macs" in found:
        rows["multiply-adds of a crop"] = f"{found['macs'] / 1e9:.1f} billion"
    if "steps" in found:
        rows["steps of the whole training"] = f"{found['steps']}, with {found.get('crops_per_step', '?')} crops each"
    if "peak_gpu_bytes" in found:
        rows["GPU memory"] = f"{found['peak_gpu_bytes'] / 1e9:.2f} GB at most"
    if records:
        total = sum(record["seconds"] for record in records)
        rows["time"] = f"{duration(total)}, {duration(total / len(records))} per epoch"
        rows["learning rate of the last epoch"] = f"{records[-1]['learning_rate']:.3g}"
    if skipped := max((record.get("skipped_steps", 0) for record in records), default=0):
        rows["skipped steps"] = str(skipped)
    return rows


def _scores(fold: Path) -> dict[str, float | None]:
    """Dice by structure from nnU-Net's validation, and their mean; labels of regions keep nnU-Net's names."""
    summary = read_table(fold / "validation" / "summary.json")
    if "foreground_mean" not in summary:
        return {}
    labels = read_table(fold.parent / DATASET_FILE).get("labels", {})
    names = {str(tuple(value) if isinstance(value, list) else value): name for name, value in labels.items()}
    scores = {names.get(label, f"label {label}"): of["Dice"] for label, of in summary["mean"].items()}
    return {**scores, "mean": summary["foreground_mean"]["Dice"]}


def _curves(fold: Path, records: Records) -> Picture | None:
    if records:
        curves = data_uri(training_curves({"this training": records}))
        text = "Dice on patches is nnU-Net's estimate during training."
        return Picture(curves, "Curves of loss and of Dice on validation patches", text)
    plot = fold / PLOT_FILE
    if not plot.is_file():
        return None
    return Picture(data_uri(plot.read_bytes(), "png"), "nnU-Net's own plot of the training", "nnU-Net's own plot.")


def _measured(records: Records) -> Picture | None:
    figure = measured_curves(records)
    if figure is None:
        return None
    return Picture(
        data_uri(figure),
        "Curves of the shares of the loss terms in the gradient of each encoder, and of the probe",
        "Measured every few epochs. Share of the gradient: norm of a term's gradient over the sum of all norms. Probe: "
        "mean Dice of a linear read-out of the frozen encoder, on training cases that it was not fitted on.",
    )
