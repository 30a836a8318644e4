"""Errors of answers that are known, on a volume in memory."""

from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_topomae.architectures.copretraining import BranchOutput, CoPretrainingOutput
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import ArchitectureConfig, PretrainingConfig, TopoMAEConfig
from nnunet_topomae.data.loaders import build_pretraining_loader
from nnunet_topomae.data.transforms import Places
from nnunet_topomae.data.vector_statistics import report_vectors, vector_statistics
from nnunet_topomae.geometry import CropLocation
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.training.spatial_errors import MEAN, SpatialErrors, measure_spatial_errors
from nnunet_topomae.vectors import VectorFrame, centre_vectors, vector_targets

ARCHITECTURE = ArchitectureConfig(vit="tiny", dims=(8, 8, 16, 16), depth=1)
SHAPE = derive_network_shape((8, 16, 24), [[1, 1, 1], *[[2, 2, 2]] * 3], ARCHITECTURE)
CPU = torch.device("cpu")


class _Cases:
    """One volume, whose only channel stores the coordinate along W."""

    identifiers = ("a",)

    def load_case(self, case: str) -> tuple[np.ndarray, np.ndarray, None, dict[str, Any]]:
        volume = np.broadcast_to(np.arange(64, dtype=np.float32), (1, 8, 16, 64)).copy()
        return volume, np.zeros_like(volume), None, {}


def _errors(answer: Any, **section: Any) -> list[SpatialErrors]:
    plan = Plan(TopoMAEConfig(ARCHITECTURE, PretrainingConfig(**section)), SHAPE, (0.1, 1.0, 0.75), {})
    loader = build_pretraining_loader(_Cases(), 2, plan, LabelManager({"background": 0, "organ": 1}, None), 0)
    frame = plan.vector_frame()

    def predict(data: torch.Tensor, mask: Any) -> CoPretrainingOutput:
        start = int(data[0, 0, 0, 0, 0])
        place = CropLocation((0, 0, start), (8, 16, start + 24), (8, 16, 64))
        return CoPretrainingOutput(None, answer(place, frame))

    return measure_spatial_errors(predict, loader, plan, ["a"], CPU, 8)


def _know(place: CropLocation, frame: VectorFrame) -> BranchOutput:
    vectors = torch.from_numpy(vector_targets(place, frame)[None, :, :3])
    return BranchOutput(torch.zeros(1, 1, 8, 16, 24), torch.from_numpy(place.key_points())[None], vectors)


def test_who_knows_the_place_makes_no_error_and_the_mean_does() -> None:
    vectors, points = _errors(_know, spatial="both")
    assert (vectors.task, points.task, vectors.crops) == ("vectors", "key_points", 8)
    assert vectors.of["partner"]["mm"] == pytest.approx(0, abs=0.01)  # the longest are clipped
    assert vectors.of["partner"]["degrees"] == pytest.approx(0, abs=0.1)
    assert points.of["partner"]["mm"] == pytest.approx(0, abs=1e-3)
    assert vectors.of[MEAN]["mm"] > 1 and vectors.of[MEAN]["degrees"] > 5 and points.of[MEAN]["mm"] > 1
    assert "did not learn" not in vectors.line() and vectors.line().startswith(
        "vectors of 8 random crops of training cases: partner 0.0"
    )
    assert SpatialErrors.read("vectors", vectors.facts()) == vectors


def test_who_answers_worse_than_the_mean_has_learnt_nothing() -> None:
    def wrong(place: CropLocation, frame: VectorFrame) -> BranchOutput:
        return _know(place, frame)._replace(vectors=torch.ones(1, 9, 3))

    (vectors,) = _errors(wrong, spatial="vectors")
    assert vectors.line().endswith("The partner did not learn them")
    assert _errors(wrong, spatial="none") == []


@pytest.mark.parametrize(
    ("mm", "degrees", "said"),
    [
        (9.0, 29.0, ""),
        (9.0, 30.0, ". The partner did not learn their directions"),
        (9.0, float("nan"), ""),
        (10.0, 29.0, ". The partner did not learn them"),
        (10.0, 31.0, ". The partner did not learn them"),
    ],
)
def test_a_distance_or_a_direction_no_better_than_the_means_is_named(mm: float, degrees: float, said: str) -> None:
    mean = {"mm": 10.0, "degrees": 30.0}
    of = {"vit": {"mm": 1.0, "degrees": 2.0}, "partner": {"mm": mm, "degrees": degrees}, MEAN: mean}
    assert SpatialErrors("vectors", of, 8).line().partition("always the mean: 10.0 mm and 30 degrees")[2] == said


@pytest.mark.slow
def test_statistics_say_what_is_clipped(tmp_path: Any) -> None:
    frame = VectorFrame((1.0, 1.0, 1.0), 0, 2)
    tall = vector_statistics([(64, 8, 8)], Places((48, 8, 8), scale=(1.0, 1.5)), frame)
    assert tall.clipped > 0.5 and tall.lines()[-1].startswith("warning")
    flat = vector_statistics([(8, 64, 64)], Places((8, 16, 16)), frame)
    assert flat.clipped < 0.05 and len(flat.lines()) == 1
    place = CropLocation((0, 0, 0), (8, 16, 16), (8, 64, 64))
    assert flat.longest_mm == pytest.approx(np.linalg.norm(centre_vectors(place, frame), axis=1).max(), rel=0.05)
    with pytest.raises(ValueError, match="at least one volume"):
        vector_statistics([], Places((8, 8, 8)), frame)
    plan, lines = Plan(TopoMAEConfig(), SHAPE, (1.0, 1.0, 1.0), {}, transpose_forward=(1, 0, 2)), []
    report_vectors([(8, 64, 64)], Places((8, 16, 16), planes=((1, 2),)), plan, tmp_path, lines.append)
    assert lines[0].startswith("vectors: the axis from slice to slice is H, as no spacing is clearly the largest")
    assert lines[0].endswith("polar axis W; planes of rotation: HW") and (tmp_path / "vectors.json").is_file()
