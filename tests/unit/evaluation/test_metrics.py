import itertools
import json

import numpy as np
import pytest
import SimpleITK
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from skimage.measure import marching_cubes, mesh_surface_area

from nnunet_topomae.evaluation.metrics import (
    MetricOptions,
    betti_numbers,
    dice,
    hd95,
    nsd,
    score_case,
    summarise,
    voxel_hd95,
)
from nnunet_topomae.evaluation.surface import surface_areas
from nnunet_topomae.nnunet.scoring import score_folder

SPACING = (3.0, 1.5, 0.8)


def blobs(seed, shape=(9, 12, 14), sigma=1.2):
    rng = np.random.default_rng(seed)
    first = gaussian_filter(rng.standard_normal(shape), sigma)
    second = first + 0.6 * gaussian_filter(rng.standard_normal(shape), sigma)
    return first > np.quantile(first, 0.75), second > np.quantile(second, 0.75)


def surface_by_loops(mask, spacing):
    """Every crossed 2 x 2 x 2 block: its place in mm and the area of its marching-cubes mesh."""
    padded = np.pad(mask, 1).astype(np.float32)
    places, areas = [], []
    for start in itertools.product(*(range(n - 1) for n in padded.shape)):
        block = padded[tuple(slice(s, s + 2) for s in start)]
        if block.min() != block.max():
            vertices, faces, _, _ = marching_cubes(block, 0.5, spacing=spacing, method="lorensen")
            places.append(np.array(start) * spacing)
            areas.append(mesh_surface_area(vertices, faces))
    return np.array(places), np.array(areas)


def hd_by_loops(truth, prediction, spacing, percentile):
    (a, a_area), (b, b_area) = (surface_by_loops(m, spacing) for m in (truth, prediction))
    distances = cdist(a, b)
    result = []
    for values, weights in ((distances.min(axis=1), a_area), (distances.min(axis=0), b_area)):
        total = 0.0
        for value, weight in sorted(zip(values, weights, strict=True)):
            total += weight
            if total >= percentile / 100 * weights.sum() * (1 - 1e-12):
                result.append(value)
                break
    return max(result)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_hd95_equals_brute_force(seed):
    truth, prediction = blobs(seed)
    for percentile in (50.0, 95.0):
        expected = hd_by_loops(truth, prediction, SPACING, percentile)
        assert hd95(truth, prediction, SPACING, percentile) == pytest.approx(expected, abs=1e-9)
    assert hd95(prediction, truth, SPACING) == pytest.approx(hd95(truth, prediction, SPACING))


def test_hd95_of_shifted_boxes_is_the_shift():
    truth = np.zeros((12, 20, 30), dtype=bool)
    truth[3:8, 4:14, 5:18] = True
    for axis, shift in ((0, 2), (1, 3), (2, 4)):
        moved = np.roll(truth, shift, axis=axis)
        assert hd95(truth, moved, SPACING) == pytest.approx(shift * SPACING[axis])
    assert hd95(truth, truth, SPACING) == 0.0


def test_hd95_of_concentric_balls_is_the_difference_of_radii():
    grid = np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in (25, 47, 49)), indexing="ij"))
    distance = np.linalg.norm(grid * np.array([2.0, 1.0, 1.0]).reshape(3, 1, 1, 1), axis=0)
    assert hd95(distance < 20, distance < 14, (2.0, 1.0, 1.0)) == pytest.approx(6.0, abs=1.0)


def test_a_small_far_island_counts_at_100_percent_only():
    truth = np.zeros((20, 30, 40), dtype=bool)
    truth[5:15, 5:20, 5:20] = True
    prediction = truth.copy()
    prediction[10, 10, 38] = True
    assert hd95(truth, prediction, SPACING) == 0.0
    assert hd95(truth, prediction, SPACING, 100.0) > 10.0


def test_empty_masks():
    truth = np.zeros((3, 4, 5), dtype=bool)
    some = truth.copy()
    some[1, 2, 3] = True
    diagonal = np.sqrt((3 * 3.0) ** 2 + (4 * 1.5) ** 2 + (5 * 0.8) ** 2)
    assert np.isnan(hd95(truth, truth, SPACING)) and np.isnan(dice(truth, truth))
    assert hd95(some, truth, SPACING) == hd95(truth, some, SPACING) == pytest.approx(diagonal)
    assert dice(some, truth) == dice(truth, some) == 0.0


def test_areas_add_up_to_the_surface_of_the_whole_mask():
    mask, _ = blobs(7)
    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5, spacing=SPACING, method="lorensen")
    _, areas = surface_by_loops(mask, SPACING)
    assert areas.sum() == pytest.approx(mesh_surface_area(vertices, faces), rel=1e-5)
    table = surface_areas(SPACING)
    flat_code = 0b00001111  # the lower half along D: one flat surface of spacing[1] * spacing[2]
    assert table[flat_code] == pytest.approx(SPACING[1] * SPACING[2], rel=1e-6)
    assert table[0] == table[255] == 0
    sides = [SPACING[0] * SPACING[1], SPACING[1] * SPACING[2], SPACING[0] * SPACING[2]]
    for corner in range(8):  # one corner inside: a triangle through three edge centres
        assert table[1 << corner] == pytest.approx(np.linalg.norm(sides) / 8, rel=1e-6)


def test_scores_count_missed_and_spurious_structures():
    truth, prediction = np.zeros((2, 6, 7, 8), dtype=np.uint8)
    truth[1:3, 1:3, 1:3] = 1
    prediction[4:6, 4:6, 4:6] = 2
    labels = {"background": 0, "a": 1, "b": 2, "c": 3}
    scores = score_case(truth, prediction, SPACING, labels)
    assert list(scores) == ["a", "b", "c"]
    assert (scores["a"].missed, scores["a"].spurious, scores["a"].dice) == (True, False, 0.0)
    assert (scores["b"].missed, scores["b"].spurious, scores["b"].dice) == (False, True, 0.0)
    assert np.isnan(scores["c"].dice) and not (scores["c"].missed or scores["c"].spurious)
    summary = summarise([scores["a"], scores["c"]])
    assert (summary["dice"], summary["missed"], summary["cases"]) == (0.0, 1, 2)
    assert summary["hd95"] == scores["a"].hd95


@pytest.fixture
def folders(tmp_path):
    labels = {"background": 0, "a": 1, "b": 2}
    for seed in range(3):
        for name, mask in zip(("truth", "prediction"), blobs(seed), strict=True):
            label_map = mask.astype(np.uint8)
            label_map[:, :6] *= 1 + (seed != 1)
            image = SimpleITK.GetImageFromArray(label_map)
            image.SetSpacing(SPACING[::-1])
            (tmp_path / name).mkdir(exist_ok=True)
            SimpleITK.WriteImage(image, tmp_path / name / f"case_{seed}.nii.gz")
    return tmp_path / "truth", tmp_path / "prediction", labels


def test_dice_equals_nnunet(folders, light_nnunet):
    truth, prediction, labels = folders
    summary = truth.parent / "summary.json"
    compute_metrics_on_folder(str(truth), str(prediction), str(summary), SimpleITKIO(), ".nii.gz", [1, 2], None, 1)
    expected = json.loads(summary.read_text())
    scores = score_folder(truth, prediction, labels)
    for case in expected["metric_per_case"]:
        name = case["reference_file"].split("/")[-1].removesuffix(".nii.gz")
        for structure in ("a", "b"):
            value = case["metrics"][str(labels[structure])]["Dice"]
            assert scores[name][structure].dice == pytest.approx(value, abs=1e-9, nan_ok=True)
    means = [summarise([case[s] for case in scores.values()])["dice"] for s in ("a", "b")]
    assert np.mean(means) == pytest.approx(expected["foreground_mean"]["Dice"], abs=1e-9)


def test_folders_must_match(folders, tmp_path):
    truth, prediction, labels = folders
    with pytest.raises(ValueError, match="holds no"):
        score_folder(tmp_path, prediction, labels)
    (prediction / "case_1.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 predictions, first case_1\.nii\.gz"):
        score_folder(truth, prediction, labels)


def test_other_spacing_of_the_prediction_raises(folders):
    truth, prediction, labels = folders
    file = prediction / "case_0.nii.gz"
    image = SimpleITK.ReadImage(file)
    image.SetSpacing((1.0, 1.0, 1.0))
    SimpleITK.WriteImage(image, file)
    with pytest.raises(ValueError, match="spacing of the prediction"):
        score_folder(truth, prediction, labels)


def test_bad_masks_raise():
    mask = np.ones((3, 4, 5), dtype=bool)
    with pytest.raises((ValueError, TypeError)):
        dice(mask, np.ones((3, 4, 6), dtype=bool))
    with pytest.raises(ValueError, match="percentile"):
        hd95(mask, mask, SPACING, 0.0)
    with pytest.raises(ValueError, match="spacings"):
        hd95(mask, mask, (1.0, -1.0, 1.0))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.5])
def test_nsd_equals_brute_force(seed, tolerance):
    truth, prediction = blobs(seed)
    (a, a_area), (b, b_area) = (surface_by_loops(mask, SPACING) for mask in (truth, prediction))
    distances = cdist(a, b)
    near = (
        a_area[distances.min(axis=1) <= tolerance + 1e-9].sum()
        + b_area[distances.min(axis=0) <= tolerance + 1e-9].sum()
    )
    expected = near / (a_area.sum() + b_area.sum())
    assert nsd(truth, prediction, SPACING, tolerance) == pytest.approx(expected, rel=1e-6)


def test_nsd_of_empty_masks_and_bad_tolerance():
    empty = np.zeros((3, 4, 5), dtype=bool)
    some = empty.copy()
    some[1, 2, 3] = True
    assert np.isnan(nsd(empty, empty, SPACING, 1.0))
    assert nsd(some, empty, SPACING, 1.0) == nsd(empty, some, SPACING, 1.0) == 0.0
    assert nsd(some, some, SPACING, 0.0) == 1.0
    with pytest.raises(ValueError, match="at least 0 mm"):
        nsd(some, some, SPACING, -1.0)


@pytest.mark.parametrize("seed", range(3))
def test_the_published_hd95_is_in_voxels_and_kind_to_missing(seed):
    truth, prediction = blobs(seed)

    def border(mask):
        padded = np.pad(mask, 1)
        inside = np.ones_like(mask)
        for axis in range(3):
            for shift in (-1, 1):
                inside &= np.roll(padded, shift, axis)[1:-1, 1:-1, 1:-1]
        return np.argwhere(mask & ~inside)

    distances = cdist(border(truth), border(prediction))
    expected = np.percentile([*distances.min(axis=0), *distances.min(axis=1)], 95)
    assert voxel_hd95(truth, prediction) == pytest.approx(expected)
    assert voxel_hd95(truth, np.zeros_like(truth)) == 0.0


def test_volume_errors_and_the_paper_protocol():
    truth, prediction = np.zeros((2, 6, 7, 8), dtype=np.uint8)
    truth[1:3, 1:3, 1:3] = 1
    prediction[1:3, 1:3, 1:4] = 1
    scores = score_case(truth, prediction, (2.0, 5.0, 10.0), {"background": 0, "a": 1, "b": 2})
    assert scores["a"].volume_error == pytest.approx(4 * 0.1)
    assert scores["a"].relative_volume_error == pytest.approx(0.5)
    assert scores["a"].paper_dice == scores["a"].dice == pytest.approx(16 / 20)
    assert (scores["b"].paper_dice, scores["b"].paper_hd95, scores["b"].volume_error) == (1.0, 0.0, 0.0)
    assert np.isnan(scores["b"].relative_volume_error)
    without = score_case(truth, prediction, SPACING, {"a": 1}, MetricOptions(paper_protocol=False))
    assert np.isnan(without["a"].paper_dice)


def test_regions_and_ignored_voxels():
    truth, prediction = np.zeros((2, 4, 5, 6), dtype=np.uint8)
    truth[1, 1:4, 1:4] = 1
    truth[2, 1:4, 1:4] = 2
    prediction[1:3, 1:4, 1:4] = 1
    truth[0], prediction[0] = 3, 2  # ignored, however wrong
    scores = score_case(truth, prediction, SPACING, {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3})
    assert list(scores) == ["whole", "core"]
    assert scores["whole"].dice == 1.0
    assert scores["core"].missed


def test_betti_numbers_of_known_shapes():
    box = np.zeros((9, 9, 9), dtype=bool)
    assert betti_numbers(box) == (0, 0, 0)
    box[1:8, 1:8, 1:8] = True
    assert betti_numbers(box) == (1, 0, 0)
    box[3, 3, 3] = box[5, 5, 5] = False  # two cavities
    assert betti_numbers(box) == (1, 0, 2)
    box[1:8, 2, 6] = False  # a tunnel
    assert betti_numbers(box) == (1, 1, 2)
    assert betti_numbers(np.ones((3, 4, 5), dtype=bool)) == (1, 0, 0)
    corners = np.zeros((4, 4, 4), dtype=bool)
    corners[1, 1, 1] = corners[2, 2, 2] = True
    assert betti_numbers(corners)[0] == 2  # joined through faces only
    scores = score_case(
        box.astype(np.uint8), np.ones((9, 9, 9), np.uint8), SPACING, {"a": 1}, MetricOptions(betti=True)
    )
    assert scores["a"].betti_error == 3.0
