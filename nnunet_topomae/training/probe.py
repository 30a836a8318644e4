"""A cheap probe of pre-training: how well a linear read-out of the frozen encoders' features segments.

The read-out is fitted in closed form (ridge regression) on crops of a few training cases and scored on other training
cases. No validation case is read, and no weight of the networks changes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor, nn

from nnunet_topomae.architectures.vit import ViTEncoder
from nnunet_topomae.data.labelled_crops import NO_LABEL, LabelledCrop, halves
from nnunet_topomae.training.steps import autocast

# At most; half of them are fitted on.
PROBE_CASES = 8
# Per crop that it is fitted on.
FITTED_VOXELS = 2048
# Ridge penalty per voxel, on standardised features.
PENALTY = 0.01
# Feature maps of the ViT: its middle and its last layer.
VIT_TAPS = 2
# A smaller gain in Dice is no improvement.
LEAST_GAIN = 0.002
# Scores of so many classes of a whole crop are in memory.
CLASSES_AT_ONCE = 16
# A longer probe is worth a warning; part of its epoch's time.
MOST_TIME = 0.05

RECORD_PROBE = "probe"


def encoder_features(encoder: nn.Module, crop: Float[Tensor, "C D H W"]) -> list[Float[Tensor, "1 F _d _h _w"]]:
    """Feature maps of a whole crop, float32.

    Args:
        encoder: the ViT's, or that of its partner, in evaluation mode.
        crop: on the encoder's device.
    """
    with torch.no_grad(), autocast(crop.device):
        maps = encoder.forward_taps(crop[None], VIT_TAPS) if isinstance(encoder, ViTEncoder) else encoder(crop[None])
    return [features.float() for features in maps]


def features_at(
    maps: Sequence[Float[Tensor, "1 _F _d _h _w"]], voxels: Int[Tensor, "N 3"], shape: Sequence[int]
) -> Float[Tensor, "N E"]:
    """Features of single voxels, interpolated from all maps and joined.

    Args:
        maps: of one crop; grids of any size that cover all of it.
        voxels: (D, H, W) indices in the crop.
        shape: of the crop.
    """
    sizes = torch.tensor(list(shape), device=voxels.device)
    places = ((2 * voxels + 1) / sizes - 1).flip(1).float()  # (x, y, z) from -1 to 1, as grid_sample wants it
    grid = places[None, None, None]  # (N, 3) -> (1, 1, 1, N, 3)
    columns = [nn.functional.grid_sample(m, grid, padding_mode="border", align_corners=False) for m in maps]
    return torch.cat([column[0, :, 0, 0].T for column in columns], dim=1)  # (1, F, 1, 1, N) -> (N, F), side by side


def voxels_to_fit(labels: Int[ndarray, "D H W"], most: int, seed: int) -> Int[ndarray, "N 3"]:
    """Random labelled voxels and as many of the background, every structure alike.

    Args:
        labels: of a crop, -1 where nothing counts.
        most: number of voxels.
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    structures = [value for value in np.unique(labels) if value > 0]
    shares = {0: most // 2, **{value: most // 2 // len(structures) for value in structures}}
    chosen = []
    for value, share in shares.items():
        places = np.argwhere(labels == value)
        chosen.append(places if len(places) <= share else places[rng.choice(len(places), share, replace=False)])
    return np.concatenate(chosen)


class RidgeReadOut:
    """Linear classifier: ridge regression of the labels, one column per class, on standardised features.

    Args:
        features: (N, E).
        labels: class of every row.
        penalty: per row.
    """

    def __init__(self, features: Float[Tensor, "N E"], labels: Int[Tensor, " N"], penalty: float = PENALTY) -> None:
        rows = features.double()
        self.classes, index = labels.unique(return_inverse=True)
        self.mean, self.scale = rows.mean(0), rows.std(0).clamp_min(1e-8)
        wanted = nn.functional.one_hot(index, len(self.classes)).double()
        self.offset = wanted.mean(0)
        standard = (rows - self.mean) / self.scale
        gram = standard.T @ standard
        gram.diagonal().add_(penalty * len(rows))
        self.weights = torch.linalg.solve(gram, standard.T @ (wanted - self.offset), left=True)

    def segment(self, maps: Sequence[Float[Tensor, "1 _F _d _h _w"]], shape: Sequence[int]) -> Int[Tensor, "D H W"]:
        """The class of every voxel of a crop.

        Interpolation is linear, and so is the classifier: instead of all features, the few scores are interpolated.

        Args:
            maps: of the crop, as in :func:`features_at`.
            shape: of the crop.
        """
        counts = [features.shape[1] for features in maps]
        weights, means = (self.weights / self.scale[:, None]).split(counts), self.mean.split(counts)
        best = torch.full(tuple(shape), -torch.inf, device=self.weights.device)
        chosen = torch.zeros_like(best, dtype=torch.long)
        for part in torch.arange(len(self.classes), device=best.device).split(CLASSES_AT_ONCE):
            scores = self.offset[part, None, None, None].float().expand(-1, *shape)
            for features, weight, mean in zip(maps, weights, means, strict=True):
                centred = features[0].double() - mean[:, None, None, None]
                coarse = torch.einsum("fdhw,fk->kdhw", centred, weight[:, part]).float()
                fine = nn.functional.interpolate(coarse[None], tuple(shape), mode="trilinear", align_corners=False)
                scores = scores + fine[0]
            score, index = scores.max(0)
            chosen = torch.where(score > best, self.classes[part[index]], chosen)
            best = torch.maximum(score, best)
        return chosen


def mean_dice(predicted: Int[ndarray, " N"], true: Int[ndarray, " N"]) -> float:
    """Dice averaged over the structures that there are; the voxels of all crops count together.

    Args:
        predicted: classes.
        true: of the same voxels.
    """
    size = int(max(predicted.max(initial=0), true.max(initial=0))) + 1
    overlap, found, wanted = (np.bincount(of, minlength=size) for of in (true[predicted == true], predicted, true))
    present = np.flatnonzero(wanted)
    present = present[present > 0]
    scores = 2 * overlap[present] / (found + wanted)[present]
    return float(scores.mean()) if len(scores) else float("nan")


def probe(encoder: nn.Module, crops: Sequence[LabelledCrop], device: torch.device) -> float:
    """Mean Dice of a linear read-out, fitted on every second crop, on all voxels of the other crops.

    NaN where these have no structure.

    Args:
        encoder: in evaluation mode.
        crops: of different cases, at least two.
        device: of the encoder.
    """
    fitted_on, scored_on = halves(crops)

    rows, labels = [], []
    for seed, crop in enumerate(fitted_on):
        voxels = voxels_to_fit(crop.labels, FITTED_VOXELS, seed)
        maps = encoder_features(encoder, crop.data.to(device))
        rows.append(features_at(maps, torch.from_numpy(voxels).to(device), crop.labels.shape))
        labels.append(crop.labels[tuple(voxels.T)])
    read_out = RidgeReadOut(torch.cat(rows), torch.from_numpy(np.concatenate(labels)).to(device))
    predicted, true = [], []
    for crop in scored_on:
        found = read_out.segment(encoder_features(encoder, crop.data.to(device)), crop.labels.shape).cpu().numpy()
        counts: Bool[ndarray, "D H W"] = crop.labels != NO_LABEL
        predicted.append(found[counts])
        true.append(crop.labels[counts])
    return mean_dice(np.concatenate(predicted), np.concatenate(true))


def probe_all(
    encoders: Mapping[str, nn.Module],
    crops: Callable[[], Sequence[LabelledCrop]],
    device: torch.device,
    epoch_seconds: float,
    log: Callable[[str], object],
) -> dict[str, Any]:
    """Probe every encoder, and say what it cost.

    Args:
        encoders: by name, in evaluation mode.
        crops: reads them; the time counts.
        device: of the encoders.
        epoch_seconds: what the epoch took without the probe.
        log: takes a line.

    Returns:
        For the record of the epoch: Dice by encoder, where it was measured, and ``seconds``; empty where fewer than two
        cases are labelled.
    """
    start = time.monotonic()
    found = crops()
    if len(found) < 2:
        log("no probe: it needs two training cases with labelled voxels")
        return {}
    dice = {name: probe(encoder, found, device) for name, encoder in encoders.items()}
    seconds = time.monotonic() - start
    share = seconds / max(epoch_seconds, 1e-9)
    measured = {name: value for name, value in dice.items() if isfinite(value)}
    shown = ", ".join(
        f"{name} {value:.3f}" if name in measured else f"{name} not measured" for name, value in dice.items()
    )
    cost = f"{seconds:.1f} s, {share:.1%} of the epoch"
    log(f"probe, mean Dice on training cases that it was not fitted on: {shown} ({cost})")
    if share > MOST_TIME:
        log(
            f"warning: the probe took more than {100 * MOST_TIME:.0f} % of its epoch's time. Set a larger "
            "pretraining.probe_every to probe less often."
        )
    return {RECORD_PROBE: {**measured, "seconds": seconds}}


def probe_scores(records: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Epoch and Dice of all probes that were measured, averaged over the encoders.

    Args:
        records: one per epoch, oldest first.
    """
    scores = []
    for record in records:
        found = record.get(RECORD_PROBE, {}).items()
        dice = [value for name, value in found if name != "seconds" and isfinite(value)]
        if dice:
            scores.append((record["epoch"], sum(dice) / len(dice)))
    return scores


def plateau(records: Sequence[Mapping[str, Any]], patience: int) -> str | None:
    """Why a pre-training may end: so many probes in a row were not better than the best one before them.

    Args:
        records: one per epoch, oldest first.
        patience: number of probes; 0 never ends anything.

    Returns:
        A sentence, or None.
    """
    best, best_epoch, waited = -1.0, 0, 0
    for epoch, dice in probe_scores(records):
        if dice > best + LEAST_GAIN:
            best, best_epoch, waited = dice, epoch, 0
        else:
            waited += 1
    if not patience or waited < patience:
        return None
    return (
        f"the probe is on a plateau: {waited} probes after epoch {best_epoch + 1}, with Dice {best:.3f}, were not "
        f"better by {LEAST_GAIN} (pretraining.plateau_probes = {patience}; 0 trains for all epochs)"
    )
