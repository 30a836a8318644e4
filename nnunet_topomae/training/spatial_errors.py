"""How well networks know where a crop was taken, against always answering the mean."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Generator

from nnunet_topomae.architectures.copretraining import BranchOutput, CoPretrainingOutput
from nnunet_topomae.data.loaders import Crop, CropLocationLoader, volume_shape
from nnunet_topomae.geometry import CropLocation
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.training.copretraining import draw_mask
from nnunet_topomae.training.spatial_results import MEAN, Errors, SpatialErrors
from nnunet_topomae.vectors import VectorFrame, centre_vectors, from_spherical

CROPS_PER_CASE = 4
MOST_CROPS = 200
# Crops whose mean is the answer without a network; their images are not read.
PLACES = 400
SEED = 1


class _Measured(NamedTuple):
    """A crop, and what the networks say of it."""

    crop: Crop
    frame: VectorFrame
    outputs: Mapping[str, BranchOutput]


def measure_spatial_errors(
    predict: Callable[..., CoPretrainingOutput],
    loader: CropLocationLoader,
    plan: Plan,
    cases: Sequence[str],
    device: torch.device,
    crops_per_case: int = CROPS_PER_CASE,
) -> list[SpatialErrors]:
    """Errors on random crops of some cases, augmented as in training.

    Args:
        predict: the network in evaluation mode, ``(data, mask) -> CoPretrainingOutput``.
        loader: reads the crops.
        plan: tasks, mask ratio and spacing.
        cases: their names; at least one crop of each, 200 in all at most.
        device: device of the network.
        crops_per_case: at most so many of each.

    Returns:
        One entry for each task of the plan.
    """
    pretraining = plan.config.pretraining
    if not (pretraining.vectors or pretraining.key_points):
        return []
    rng, masks = np.random.default_rng(SEED), Generator().manual_seed(SEED)
    measured = []
    for case in list(cases)[:MOST_CROPS]:
        for _ in range(min(crops_per_case, max(1, MOST_CROPS // len(cases)))):
            crop = loader.draw_crop(case, rng)
            inputs = crop.volume if loader.boundaries is None else loader.corrupt(crop.volume, case, rng)[0]
            with torch.no_grad():
                output = predict(inputs[None].to(device), draw_mask(plan, 1, masks, device))
            measured.append(_Measured(crop, plan.vector_frame().turned(crop.turn), output.present()))
    places = _draw_places(loader, plan, cases, rng)
    tasks = (("vectors", pretraining.vectors, _vector_errors), ("key_points", pretraining.key_points, _point_errors))
    return [SpatialErrors(task, errors(measured, places), len(measured)) for task, wanted, errors in tasks if wanted]


def _draw_places(
    loader: CropLocationLoader, plan: Plan, cases: Sequence[str], rng: np.random.Generator
) -> list[tuple[Float[ndarray, "9 3"], CropLocation, VectorFrame]]:
    """Key points, places and frames of random crops."""
    shapes = [volume_shape(loader.image(case)) for case in list(cases)[:MOST_CROPS]]
    frame, places = plan.vector_frame(), []
    for number in range(PLACES):
        source, turn = loader.places.draw(shapes[number % len(shapes)], rng)
        points = loader.places.key_points(source, turn)
        places.append((points, source.turned(turn), frame.turned(turn)))
    return places


def _vector_errors(measured: Sequence[_Measured], places: Sequence[Any]) -> Errors:
    """Every vector is compared in mm; the mean is that of vectors over their volume's radius."""
    mean = np.mean([centre_vectors(place, frame) / frame.radius(place) for _, place, frame in places], axis=0)
    found: dict[str, list[tuple[float, float]]] = {}
    for crop, frame, outputs in measured:
        true, radius = centre_vectors(crop.location, frame), frame.radius(crop.location)
        answers = {MEAN: mean * radius}
        for name, branch in outputs.items():
            assert branch.vectors is not None
            coordinates = branch.vectors[0].float().cpu().numpy()
            answers[name] = from_spherical(coordinates, radius, frame.polar_axis)
        for name, answer in answers.items():
            found.setdefault(name, []).append(_compare(answer, true, min(frame.spacing)))
    means = {name: np.nanmean(np.array(pairs), axis=0).tolist() for name, pairs in found.items()}
    return {name: {"mm": mm, "degrees": degrees} for name, (mm, degrees) in means.items()}


def _compare(answer: Float[ndarray, "9 3"], true: Float[ndarray, "9 3"], voxel: float) -> tuple[float, float]:
    """Mean distance, and mean angle of the vectors that are not shorter than a voxel."""
    lengths = np.linalg.norm(true, axis=1)
    cosines = (answer * true).sum(axis=1) / np.maximum(lengths * np.linalg.norm(answer, axis=1), 1e-12)
    angles = np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0)))[lengths >= voxel]
    return float(np.linalg.norm(answer - true, axis=1).mean()), float(angles.mean()) if len(angles) else np.nan


def _point_errors(measured: Sequence[_Measured], places: Sequence[Any]) -> Errors:
    """One normalised unit is half the volume's size."""
    mean = np.mean([points for points, _, _ in places], axis=0)
    found: dict[str, list[float]] = {}
    for crop, frame, outputs in measured:
        half_size = np.array(crop.location.volume_shape) * np.array(frame.spacing) / 2.0
        answers = {MEAN: mean}
        for name, branch in outputs.items():
            assert branch.key_points is not None
            answers[name] = branch.key_points[0].float().cpu().numpy()
        for name, answer in answers.items():
            distances = np.linalg.norm((answer - crop.key_points) * half_size, axis=1)
            found.setdefault(name, []).append(float(distances.mean()))
    return {name: {"mm": float(np.mean(values))} for name, values in found.items()}
