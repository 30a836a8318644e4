"""The loader on volumes that store their own coordinates: the batch must give the key points back."""

import re
import threading
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetNumpy
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import ArchitectureConfig, TopologyConfig, TopoMAEConfig
from nnunet_topomae.data import topology_target
from nnunet_topomae.data.corruptions import Corruption
from nnunet_topomae.data.loaders import CropLocationLoader, build_pretraining_loader
from nnunet_topomae.data.topology_target import TopologyTarget
from nnunet_topomae.data.transforms import Places, scaled_box, square_planes
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.topology import TopologyRegion, persistence_diagrams, workers
from nnunet_topomae.topology.workers import MOST_GIVEN_UP, HungThreadsError
from nnunet_topomae.vectors import VectorFrame


class _Cases(nnUNetDatasetNumpy):
    """Cases in memory with the interface of nnU-Net's datasets."""

    def __init__(self, volumes: dict[str, np.ndarray]) -> None:
        self.volumes = volumes
        self.identifiers = list(volumes)

    def load_case(self, case: str) -> tuple[np.ndarray, None, None, dict[str, Any]]:
        return self.volumes[case], None, None, {}


# An ignore label makes nnU-Net's own loader look for annotated voxels; ours must not.
_LABELS = LabelManager({"background": 0, "organ": 1, "ignore": 2}, None)


def _coordinates(shape: tuple[int, int, int]) -> np.ndarray:
    grids = np.meshgrid(*[np.arange(s) + 0.5 for s in shape], indexing="ij")
    return np.stack(grids).astype(np.float32)


def _loader(volumes: dict[str, np.ndarray], patch: tuple[int, int, int], **kwargs: Any) -> CropLocationLoader:
    options: dict[str, Any] = {"flip_axes": (0, 1, 2), "seed": 3} | kwargs
    return CropLocationLoader(_Cases(volumes), 2, patch, _LABELS, **options)


def _corner_coordinates(volume: torch.Tensor, row: int) -> np.ndarray:
    """Coordinates at a corner of the crop, extrapolated half a voxel outwards from its two outermost voxels."""
    ends = [(row >> (2 - axis)) & 1 for axis in range(3)]
    outer = volume[(slice(None), *[-1 if end else 0 for end in ends])].numpy()
    inner = volume[(slice(None), *[-2 if end else 1 for end in ends])].numpy()
    return np.asarray(outer + (outer - inner) / 2)


@pytest.mark.parametrize("frame", ["volume", "crop"])
def test_volume_of_coordinates_gives_back_its_key_points(frame: str) -> None:
    shapes = {"a": (11, 16, 14), "b": (9, 12, 20)}
    volumes = {case: _coordinates(shape) for case, shape in shapes.items()}
    loader = _loader(volumes, (5, 7, 6), flip_frame=frame)
    seen = set()
    for _ in range(40):
        batch = next(loader)
        for volume, points, case in zip(batch["data"], batch["key_points"], batch["keys"], strict=True):
            shape = np.array(shapes[case])
            direction = np.sign(_corner_coordinates(volume, 7) - _corner_coordinates(volume, 0))  # -1 on flipped axes
            for row in range(8):
                expected = 2 * _corner_coordinates(volume, row) / shape - 1
                if frame == "volume":  # coordinates of the flipped volume
                    expected *= direction
                np.testing.assert_allclose(points[row].numpy(), expected, atol=1e-5)
            np.testing.assert_allclose(points[8].numpy(), points[:8].numpy().mean(axis=0), atol=1e-6)
            starts_at_row_0 = points[7].numpy() > points[0].numpy()
            np.testing.assert_array_equal(starts_at_row_0, direction > 0 if frame == "crop" else [True] * 3)
            seen.add((case, *direction))
    assert len(seen) == 16  # both cases in all eight orientations


def _axes_and_corners(volume: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Where the array's axes point in the original volume (rows, unit vectors), and the coordinates of the nine points.

    Read from inner voxels, as those at the faces of a magnified crop are not interpolated.
    """
    values = volume.numpy().astype(np.float64)
    first, last = ([round(share * size) for size in values.shape[1:]] for share in (0.3, 0.6))
    base, ends = values[(slice(None), *first)], []
    for axis in range(3):
        place = [last[axis] if axis == other else first[other] for other in range(3)]
        ends.append((values[(slice(None), *place)] - base) / (last[axis] - first[axis]))
    steps = np.array(ends)  # (array axis, coordinate) per voxel
    corners = [[(row >> (2 - axis)) & 1 for axis in range(3)] for row in range(8)] + [[0.5] * 3]
    offsets = np.array(corners) * values.shape[1:] - 0.5 - first
    return steps / np.linalg.norm(steps, axis=1, keepdims=True), base + offsets @ steps


@pytest.mark.parametrize("scale", [pytest.param((1.0, 1.0), marks=pytest.mark.slow), (0.5, 1.5)])
@pytest.mark.parametrize(
    ("spacing", "slice_axis", "polar_axis"),
    [((1.0, 1.0, 1.0), 0, 2), ((1.0, 1.0, 1.0), 1, 1), ((3.0, 0.5, 0.5), 0, 2), ((1.0, 1.0, 4.0), 2, 1)],
)
def test_volume_of_coordinates_gives_back_its_vectors(
    scale: tuple[float, float], spacing: tuple[float, float, float], slice_axis: int, polar_axis: int
) -> None:
    # In the third one, boxes of 12 voxels and less do not all fit along the first axis.
    shapes = {"a": (15, 22, 14), "b": (14, 16, 20), "c": (9, 22, 20)}
    frame = VectorFrame(spacing, slice_axis, polar_axis)
    planes = square_planes((8, 8, 8), spacing)
    assert len(planes) == (3 if len(set(spacing)) == 1 else 1)
    volumes = {case: _coordinates(shape) for case, shape in shapes.items()}
    loader = _loader(volumes, (8, 8, 8), scale=scale, planes=planes, vectors=frame)
    orientations, factors, unequal = set(), set(), 0
    for _ in range(24):
        batch = next(loader)
        for volume, targets, case in zip(batch["data"], batch["vectors"].numpy(), batch["keys"], strict=True):
            axes, points = _axes_and_corners(volume)
            size = np.array(shapes[case]) * spacing
            target = np.array(shapes[case]) / 2
            target[slice_axis] = points[8, slice_axis]
            vectors = (target - points) * spacing @ axes.T
            length = np.linalg.norm(vectors, axis=1)
            radius = np.linalg.norm(np.delete(size, slice_axis)) / 2
            np.testing.assert_allclose(targets[:, 0], np.minimum(1, length / radius), atol=1e-5)
            np.testing.assert_allclose(np.cos(np.pi * targets[:, 1]) * length, vectors[:, polar_axis], atol=1e-4)
            first, second = (axis for axis in range(3) if axis != polar_axis)
            across = np.sin(np.pi * targets[:, 1]) * length
            np.testing.assert_allclose(across * np.cos(np.pi * targets[:, 2]), vectors[:, first], atol=1e-4)
            np.testing.assert_allclose(across * np.sin(np.pi * targets[:, 2]), vectors[:, second], atol=1e-4)
            orientations.add(tuple(np.rint(axes).astype(int).ravel()))
            edges = np.ptp(points[:8], axis=0) / 8
            factors.add(round(float(edges[0]), 3))
            unequal += np.ptp(edges) > 0.01
    assert len(orientations) > 12 and (len(factors) > 3) == (scale != (1.0, 1.0))
    assert all(0.4 < factor < 1.6 for factor in factors) and (unequal > 0) == (scale != (1.0, 1.0))


def test_rotations_alone_keep_left_and_right() -> None:
    planes = square_planes((6, 6, 6), (1.0, 1.0, 1.0))
    loader = _loader({"a": _coordinates((11, 12, 13))}, (6, 6, 6), planes=planes, flip_axes=())
    turned = [_axes_and_corners(volume)[0] for _ in range(30) for volume in next(loader)["data"]]
    assert {round(float(np.linalg.det(axes))) for axes in turned} == {1}
    assert len({tuple(np.rint(axes).astype(int).ravel()) for axes in turned}) > 15  # of the 24 rotations of a cube


def test_a_scaled_box_grows_no_further_than_the_volume() -> None:
    assert scaled_box((8, 8, 8), 1.5, (10, 20, 6)) == (10, 12, 8)
    assert scaled_box((8, 8, 8), 0.5, (10, 20, 2)) == (4, 4, 4)
    assert scaled_box((1, 8, 8), 0.25, (1, 8, 8)) == (1, 2, 2)
    loader = _loader({"a": _coordinates((9, 20, 20))}, (8, 8, 8), scale=(1.5, 1.5), flip_axes=())
    (location, _) = next(loader)["locations"]
    assert [up - low for low, up in location.bounds] == [9, 12, 12] and not location.is_padded


def test_corrupted_crops_come_with_their_clean_ones_and_boundaries() -> None:
    rng = np.random.default_rng(0)
    volume = 900 + 400 * (rng.random((2, 12, 14, 16)) < 0.5).astype(np.float32)
    volume[1] = 7.0  # a channel without contrast
    corruption = Corruption(shuffle=1.0, bezier=1.0, paint=1.0)
    batch = next(_loader({"a": volume}, (8, 10, 12), corruption=corruption))
    assert batch["inputs"].shape == batch["boundaries"].shape == batch["data"].shape
    assert not torch.equal(batch["inputs"], batch["data"])
    assert set(batch["data"][:, 0].unique().tolist()) == {900.0, 1300.0}
    assert batch["inputs"][:, 0].min() > 890 and batch["inputs"][:, 0].max() < 1310  # in the image's own intensities
    assert batch["boundaries"][:, 0].max() > 0 and torch.all(batch["boundaries"][:, 1] == 0)
    again = next(_loader({"a": volume}, (8, 10, 12), corruption=corruption))
    assert torch.equal(batch["inputs"], again["inputs"])


@pytest.mark.parametrize(
    ("tasks", "seed", "expected"), [("vectors", 1, False), ("vectors", None, True), ("both", 1, True)]
)
def test_boundaries_that_no_loss_reads_are_computed_for_monitoring_alone(
    tasks: str, seed: int | None, expected: bool
) -> None:
    config = TopoMAEConfig.from_configuration({"topomae": {"vectorpose": {"tasks": tasks}}}).for_vectorpose()
    shape = derive_network_shape((8, 16, 24), [[1, 1, 1], *[[2, 2, 2]] * 3], config.architecture)
    plan = Plan(config, shape, (1.0, 1.0, 1.0), {})
    batch = next(build_pretraining_loader(_Cases({"a": _coordinates((11, 17, 25))}), 1, plan, _LABELS, seed))
    assert "vectors" in batch and ({"inputs", "boundaries"} <= batch.keys()) == expected


def test_crop_larger_than_the_volume_is_centred_padded_and_clamped() -> None:
    loader = _loader({"a": _coordinates((4, 16, 14))}, (7, 7, 6), flip_axes=())
    batch = next(loader)
    location = batch["locations"][0]
    assert (location.lower[0], location.upper[0]) == (-2, 5)
    assert torch.all(batch["data"][0, :, :2] == 0) and torch.all(batch["data"][0, :, 6:] == 0)
    assert torch.equal(batch["key_points"][0, :4, 0], torch.full((4,), -1.0))
    assert torch.equal(batch["key_points"][0, 4:8, 0], torch.full((4,), 1.0))


def test_locations_of_flipped_crops_say_which_voxels_are_padding() -> None:
    # Padded by two voxels before and one behind along the first axis, the other way round after a flip.
    loader = _loader({"a": _coordinates((4, 16, 5))}, (7, 7, 6))
    seen = set()
    for _ in range(20):
        batch = next(loader)
        for volume, location in zip(batch["data"], batch["locations"], strict=True):
            np.testing.assert_array_equal(location.inside(), volume[0].numpy() != 0)
            seen.add(location.lower[0])
    assert seen == {-2, -1}


@pytest.mark.parametrize(("seed", "expected"), [(1, [True, False, False, True]), (None, [True] * 4)])
def test_monitoring_has_the_target_topology_in_every_batch(seed: int | None, expected: list[bool]) -> None:
    architecture = ArchitectureConfig(vit="tiny", dims=(8, 8, 16, 16), depth=1)
    shape = derive_network_shape((8, 16, 24), [[1, 1, 1], *[[2, 2, 2]] * 3], architecture)
    topology = TopologyConfig(region_size=4, every=3)
    plan = Plan(TopoMAEConfig(architecture, topology=topology), shape, (1.0, 1.0, 1.0), {})
    loader = build_pretraining_loader(_Cases({"a": _coordinates((11, 17, 25))}), 2, plan, _LABELS, seed)
    assert ["target_topology" in next(loader) for _ in range(4)] == expected


@pytest.mark.parametrize(("frame", "rotate"), [("volume", True), ("crop", False)])
def test_places_are_drawn_as_the_plan_says(frame: Any, rotate: bool) -> None:
    section = {"flip_axes": [0, 2], "flip_frame": frame, "scale": [0.5, 1.25], "rotate": rotate}
    config = TopoMAEConfig.from_configuration({"topomae": {"pretraining": section}})
    shape = derive_network_shape((8, 24, 24), [[1, 1, 1], *[[2, 2, 2]] * 3], config.architecture)
    plan = Plan(config, shape, (3.0, 1.0, 1.0), {})
    loader = build_pretraining_loader(_Cases({"a": _coordinates((11, 27, 25))}), 2, plan, _LABELS, 7)
    planes = ((1, 2),) if rotate else ()
    assert loader.places == Places((8, 24, 24), (0, 2), frame, (0.5, 1.25), planes) and loader.seed == 7


def test_a_batch_follows_from_its_number_and_the_seed() -> None:
    volumes = {"a": _coordinates((11, 16, 14)), "b": _coordinates((9, 12, 20))}
    first, second, other_seed = (_loader(volumes, (5, 7, 6), seed=seed) for seed in (3, 3, 4))
    second.set_thread_id(1)
    batches = [next(first) for _ in range(4)]
    for number in (2, 0, 3):
        again = second.draw(number)
        assert torch.equal(again["data"], batches[number]["data"])
        assert again["keys"] == batches[number]["keys"] and again["mask_seeds"] == batches[number]["mask_seeds"]
    assert len({tuple(batch["mask_seeds"]) for batch in batches}) == 4
    assert not torch.equal(other_seed.draw(0)["data"], batches[0]["data"])
    first.reset()
    assert torch.equal(next(first)["data"], batches[0]["data"])


def test_samples_of_two_processes_are_those_of_one() -> None:
    volumes = {"a": _coordinates((11, 16, 14)), "b": _coordinates((9, 12, 20))}
    first, second = (_loader(volumes, (5, 7, 6), first_sample=place) for place in (0, 2))
    alone = _loader(volumes, (5, 7, 6))
    alone.batch_size = 4
    parts, whole = (first.draw(1), second.draw(1)), alone.draw(1)
    assert torch.equal(torch.cat([part["data"] for part in parts]), whole["data"])
    assert [*parts[0]["mask_seeds"], *parts[1]["mask_seeds"]] == whole["mask_seeds"]


def test_global_random_state_is_neither_used_nor_changed() -> None:
    loader = _loader({"a": _coordinates((11, 16, 14))}, (5, 7, 6))
    np.random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = next(loader)
    assert np.array_equal(np.random.get_state()[1], before[0]) and torch.equal(torch.get_rng_state(), before[1])
    np.random.seed(2)
    torch.manual_seed(2)
    loader.reset()
    assert torch.equal(next(loader)["data"], first["data"])


def test_nan_names_the_case() -> None:
    volume = _coordinates((11, 16, 14))
    volume[0, 5, 5:9, 5:9] = np.nan
    loader = _loader({"broken": volume}, (11, 16, 14))
    with pytest.raises(ValueError, match="case broken holds NaN"):
        next(loader)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_outside_of_a_corrupted_crop_names_the_case_too(value: float) -> None:
    """What counts as dark and bright is read from the whole image."""
    volume = _coordinates((11, 16, 14))
    volume[0, 10, 15, 13] = value
    loader = _loader({"broken": volume}, (4, 4, 4), corruption=Corruption(0.0, 0.0, 0.0))
    crop = torch.zeros(3, 4, 4, 4)
    with pytest.raises(ValueError, match="case broken holds NaN or infinite voxels. Correct its image in nnUNet_raw"):
        loader.corrupt(crop, "broken", np.random.default_rng(0))


@pytest.mark.parametrize("region", ["full", "crop", "pool"])
def test_target_topology_is_that_of_the_region(region: str) -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(2, 9, 12, 11)).astype(np.float32)
    config = TopologyConfig(region=region, region_size=5)
    loader = _loader({"a": volume}, (7, 9, 8), target=TopologyTarget(config), target_every=2)
    batch = next(loader)
    for data, target in zip(batch["data"], batch["target_topology"], strict=True):
        channels = TopologyRegion(config.region, 5).extract(data[None], target.origin)[0]
        for channel, diagrams in zip(channels, target.diagrams, strict=True):
            direct = persistence_diagrams(channel)
            for dimension in (0, 1, 2):
                np.testing.assert_array_equal(direct[dimension].points, diagrams[dimension].points)
    assert "target_topology" not in next(loader)
    assert "target_topology" in next(loader)


@pytest.mark.parametrize(
    ("failure", "says"),
    [(None, r"more than 0.05 s \(topology.time_limit\)"), (MemoryError("full"), "the input: MemoryError: full")],
)
def test_a_batch_comes_although_its_diagrams_hang_or_fail(
    failure: Exception | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its crops and masks, and those of the next batch, are the same as ever."""
    volumes = {"a": np.random.default_rng(4).normal(size=(1, 7, 12, 10)).astype(np.float32)}
    target = TopologyTarget(TopologyConfig(region="crop", region_size=4, time_limit=0.05))
    expected = _loader(volumes, (7, 9, 8), target=target)
    gate = threading.Event()

    def hang_or_fail(*_: Any) -> None:
        if failure is not None:
            raise failure
        gate.wait(20)

    loader = _loader(volumes, (7, 9, 8), target=target)
    with monkeypatch.context() as patch:
        patch.setattr(topology_target, "persistence_diagrams", hang_or_fail)
        batch = next(loader)
    gate.set()
    assert re.search(says, batch["no_target_topology"]) and "target_topology" not in batch
    for found, whole in ((batch, next(expected)), (next(loader), next(expected))):
        assert torch.equal(found["data"], whole["data"]) and found["mask_seeds"] == whole["mask_seeds"]
    assert "target_topology" in whole and set(found) == set(whole)
    monkeypatch.setattr(topology_target, "persistence_diagrams", lambda *_: int("NaN"))
    with pytest.raises(ValueError, match="invalid literal"):
        next(loader)


def test_an_image_with_another_number_of_channels_is_named() -> None:
    volumes = {"a": np.zeros((2, 7, 12, 10), np.float32)}
    with pytest.raises(ValueError, match="case a has 2 channels, but dataset.json names 1.*nnUNetv2_preprocess"):
        next(_loader(volumes, (7, 9, 8), channels=1))
    assert next(_loader(volumes, (7, 9, 8), channels=2))["data"].shape[1] == 2


def test_batches_end_with_the_reason_where_ever_more_diagrams_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that waits for the batches is told."""
    volumes = {"a": np.random.default_rng(4).normal(size=(1, 7, 12, 10)).astype(np.float32)}
    target = TopologyTarget(TopologyConfig(region="crop", region_size=4, time_limit=0.02))
    loader, gate = _loader(volumes, (7, 9, 8), target=target), threading.Event()
    monkeypatch.setattr(topology_target, "persistence_diagrams", lambda *_: gate.wait(60))
    try:
        for _ in range(MOST_GIVEN_UP):
            assert "no_target_topology" in next(loader)
        with pytest.raises(HungThreadsError):
            next(loader)
    finally:
        gate.set()
        for thread in workers._given_up:
            thread.join(10)
    assert re.search("4 computations of persistent homology hang", str(loader.errors.last()))
