import json

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage
from skimage.measure import euler_number

from nnunet_topomae.datasets.phantom import LABELS, make_phantom, write_phantom_dataset

SHAPE, SPACING = (40, 61, 64), (3.0, 1.5, 1.45)
# Components, tunnels and voids of every structure.
BETTI = {"organ": (1, 0, 0), "shell": (1, 0, 1), "ring": (1, 1, 0), "vessel": (1, 0, 0)}


def betti_numbers(mask):
    """Components (26-connected) and voids (6-connected) by labelling; tunnels follow from the Euler number."""
    padded = np.pad(mask, 1)
    components = ndimage.label(padded, np.ones((3, 3, 3)))[1]
    voids = ndimage.label(~padded)[1] - 1
    return components, components + voids - int(euler_number(padded, connectivity=3)), voids


def test_betti_numbers_of_known_shapes():
    solid = np.ones((3, 4, 5), dtype=bool)
    hollow = solid.copy()
    hollow[1, 1:3, 1:4] = False
    tunnel = solid.copy()
    tunnel[:, 1:3, 1:4] = False
    assert [betti_numbers(m) for m in (solid, hollow, tunnel)] == [(1, 0, 0), (1, 0, 1), (1, 1, 0)]


@pytest.mark.parametrize("seed", range(12))
def test_structures_have_their_topology(seed):
    varied = (SHAPE[0] + seed % 5, SHAPE[1] - seed % 3, SHAPE[2] - seed % 4)
    phantom = make_phantom(varied, SPACING, np.random.default_rng(seed))
    assert phantom.labels.shape == phantom.image.shape == varied
    for name, expected in BETTI.items():
        assert betti_numbers(phantom.labels == LABELS[name]) == expected, name


def test_intensities_are_ct_like_and_structures_contrast():
    phantom = make_phantom(SHAPE, SPACING, np.random.default_rng(3))
    assert phantom.image.dtype == np.int16
    assert phantom.image[:, :2, :2].mean() == pytest.approx(-1000, abs=15)
    means = [phantom.image[phantom.labels == label].mean() for label in range(1, 5)]
    muscle = np.median(phantom.image[20, 20:40, 20:40])
    assert np.all(np.abs(means - muscle) > 40) and np.all(np.diff(means) > 15)
    inside = ndimage.binary_erosion(phantom.labels == LABELS["organ"], iterations=2)
    assert 15 < phantom.image[inside].std() < 45


def test_partial_volume_at_a_border():
    """Voxels at the border lie between the two sides: their mean is near the middle of both."""
    phantom = make_phantom(SHAPE, SPACING, np.random.default_rng(4))
    vessel = phantom.labels == LABELS["vessel"]
    core = ndimage.binary_erosion(vessel)
    rim = vessel & ~core
    around = ndimage.binary_dilation(vessel, iterations=3) & ~ndimage.binary_dilation(vessel, iterations=2)
    around &= phantom.labels == 0
    assert phantom.image[around].mean() + 40 < phantom.image[rim].mean() < phantom.image[core].mean() - 40


def test_seed_decides():
    first, same, other = (make_phantom(SHAPE, SPACING, np.random.default_rng(s)) for s in (5, 5, 6))
    assert np.array_equal(first.image, same.image) and np.array_equal(first.labels, same.labels)
    assert not np.array_equal(first.labels, other.labels)


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        ((16, 64, 64), (3.0, 1.5, 1.5), "too coarse or too flat"),
        ((40, 20, 20), (3.0, 4.5, 4.5), "too coarse or too flat"),
        ((64, 64), (1.5, 1.5, 1.5), "three entries"),
        (SHAPE, (0.0, 1.5, 1.5), "positive"),
    ],
)
def test_impossible_grids_raise(shape, spacing, message):
    with pytest.raises(ValueError, match=message):
        make_phantom(shape, spacing, np.random.default_rng(0))


def test_dataset_layout(tmp_path):
    folder = write_phantom_dataset(tmp_path / "raw", 42, 5, 2, seed=1)
    assert folder.name == "Dataset042_TopoMAEPhantom"
    assert [p.name for p in sorted((tmp_path / "raw").iterdir())] == [folder.name]
    description = json.loads((folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "CT"}
    assert description["numTraining"] == 5
    assert description["labels"] == LABELS
    counts = {name: len(list((folder / name).iterdir())) for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs")}
    assert counts == {"imagesTr": 5, "labelsTr": 5, "imagesTs": 2, "labelsTs": 2}
    image = SimpleITK.ReadImage(folder / "imagesTr" / "phantom_003_0000.nii.gz")
    label = SimpleITK.ReadImage(folder / "labelsTr" / "phantom_003.nii.gz")
    assert image.GetSize() == label.GetSize() and image.GetSpacing() == label.GetSpacing()
    assert image.GetSpacing()[2] == pytest.approx(3.0, abs=0.2)
    assert image.GetSpacing()[0] == pytest.approx(1.5, abs=0.1)
    assert set(np.unique(SimpleITK.GetArrayFromImage(label))) == set(LABELS.values())


def test_dataset_is_written_once_and_only_for_its_parameters(tmp_path):
    folder = write_phantom_dataset(tmp_path, 42, 5, 1, seed=1)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert write_phantom_dataset(tmp_path, 42, 5, 1, seed=1) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    with pytest.raises(ValueError, match="not the data set asked for"):
        write_phantom_dataset(tmp_path, 42, 5, 1, seed=2)


@pytest.mark.slow
def test_a_larger_dataset_begins_with_the_same_cases(tmp_path):
    small = write_phantom_dataset(tmp_path / "a", 42, 5, 1, seed=1)
    large = write_phantom_dataset(tmp_path / "b", 42, 6, 0, seed=1)
    name = "imagesTr/phantom_004_0000.nii.gz"
    images = [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(folder / name)) for folder in (small, large)]
    assert np.array_equal(*images)


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="too coarse"):
        write_phantom_dataset(tmp_path, 42, 5, 1, seed=1, shape=(10, 12, 14))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("numbers", [(0, 5, 1, 0), (1000, 5, 1, 0), (42, 4, 1, 0), (42, 5, -1, 0), (42, 5, 1, -1)])
def test_bad_numbers_raise(tmp_path, numbers):
    with pytest.raises(ValueError, match="phantoms need"):
        write_phantom_dataset(tmp_path, *numbers)
