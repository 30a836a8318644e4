"""Pictures of cases: right way round, in a window with a name, and readable without telling colours apart."""

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from skimage.color import deltaE_ciede2000, rgb2lab

from nnunet_topomae.benchmark.results import Cost, Row
from nnunet_topomae.evaluation.statistics import Comparison
from nnunet_topomae.reports import overlays
from nnunet_topomae.reports.benchmark_plots import (
    case_figure,
    difference_figure,
    fraction_figure,
    structure_figure,
)
from nnunet_topomae.reports.case_files import CaseFiles
from nnunet_topomae.reports.overlays import case_picture, overlay_figure
from nnunet_topomae.reports.page import Picture
from nnunet_topomae.reports.plots import MARKERS, PALETTE, STRUCTURE_COLOURS
from nnunet_topomae.reports.volumes import choose_window, describe_orientation, find_tilt, read_volume

SIZES, STEPS = np.array([6, 5, 4]), np.array([1.0, 2.0, 3.5])  # along left, posterior, superior
ORGANS = (
    *("spleen", "right_kidney", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta"),
    *("inferior_vena_cava", "portal_and_splenic_veins", "pancreas", "right_adrenal_gland", "left_adrenal_gland"),
)
# Full severity, linear RGB (Machado et al. 2009).
VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def phantom(points: np.ndarray) -> np.ndarray:
    """Values that are different everywhere, at points (..., 3) in mm towards left, back and head."""
    return np.asarray(points @ np.array([100.0, 10.0, 1.0]), dtype=np.float32)


def stored(axes: tuple[int, ...], signs: tuple[int, ...]) -> SimpleITK.Image:
    """The phantom in one of the 48 orientations: index axis ``i`` runs along ``signs[i]`` times axis ``axes[i]``."""
    direction = np.zeros((3, 3))
    direction[axes, (0, 1, 2)] = signs
    sizes, steps = SIZES[list(axes)], STEPS[list(axes)]
    origin = np.where(direction.sum(axis=1) > 0, 0.0, (SIZES - 1) * STEPS)
    indices = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), axis=-1)
    values = phantom(origin + (indices * steps) @ direction.T)
    image = SimpleITK.GetImageFromArray(values.transpose(2, 1, 0))
    image.SetSpacing(steps.tolist())
    image.SetOrigin(origin.tolist())
    image.SetDirection(direction.ravel().tolist())
    return image


def test_all_48_orientations_of_a_phantom_are_shown_alike(tmp_path: Path) -> None:
    z, y, x = np.meshgrid(*map(np.arange, SIZES[::-1]), indexing="ij")
    expected = phantom(np.stack([x, y, z], axis=-1) * STEPS)
    orientations = list(product(permutations(range(3)), product((-1, 1), repeat=3)))
    assert len(orientations) == 48
    for number, (axes, signs) in enumerate(orientations):
        file = tmp_path / f"{number}.nii"
        SimpleITK.WriteImage(stored(axes, signs), file)
        values, spacing, tilt = read_volume(file)
        assert tilt == 0
        np.testing.assert_array_equal(values, expected, err_msg=f"{axes} {signs}")
        assert spacing == pytest.approx(tuple(STEPS[::-1]))


def test_an_oblique_volume_is_said_to_be_one() -> None:
    image = stored((0, 1, 2), (1, 1, 1))
    turned = SimpleITK.Euler3DTransform((0, 0, 0), np.radians(20), 0, 0).GetMatrix()
    image.SetDirection(turned)
    assert find_tilt(image) == pytest.approx(20)
    assert "oblique by 20°" in describe_orientation(find_tilt(image))
    assert "oblique" not in describe_orientation(0.5)


def draw_case(folder: Path, axes: tuple[int, ...], signs: tuple[int, ...]) -> Picture:
    """The picture of a case whose three files have the same orientation."""
    folder.mkdir()
    image = stored(axes, signs)
    truth = SimpleITK.Cast(image > 300, SimpleITK.sitkUInt8) + SimpleITK.Cast(image > 420, SimpleITK.sitkUInt8)
    for name, volume in (("image", image), ("truth", truth), ("prediction", truth != 0)):
        SimpleITK.WriteImage(volume, folder / f"{name}.nii.gz")
    files = CaseFiles(
        *("case", "Dataset001_A", "full", "worst", 0.5, folder / "image.nii.gz", folder / "truth.nii.gz"),
        *({"fusion": folder / "prediction.nii.gz"}, {"a": 1, "b": 2}, "MR"),
    )
    return case_picture(files, "fusion")


def test_the_picture_of_a_case_does_not_depend_on_the_files_orientation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(overlays, "data_uri", lambda figure, _: figures.append(figure) or "")
    picture = draw_case(tmp_path / "lps", (0, 1, 2), (1, 1, 1))
    draw_case(tmp_path / "asl", (1, 2, 0), (-1, 1, 1))
    panels = [[axis.get_images()[0].get_array() for axis in figure.axes] for figure in figures]
    for first, second in zip(*panels, strict=True):
        np.testing.assert_array_equal(first, second)
    assert "Window from 1 to 99 % of intensities. Radiological convention" in picture.caption


def texts(figure: Figure, panel: int) -> dict[str, tuple[float, float]]:
    """Where in a panel its letters stand, as shares of its width and height."""
    return {text.get_text(): text.get_position() for text in figure.axes[panel].texts}


def test_planes_letters_and_aspect_are_right() -> None:
    truth = np.zeros((4, 10, 12), dtype=np.uint8)
    truth[1, 2:6, 2:8] = 1
    truth[3, 2, 3], truth[3, 4:8, 5:9] = 1, 2
    grey = np.zeros(truth.shape)
    grey[3, 1, 10] = 1.0  # towards the head, front and left
    figure = overlay_figure(grey, truth, {"fusion": truth, "scratch": truth}, (3.0, 1.5, 1.0), {"a": 1, "b": 2})
    rows = [figure.axes[4 * row] for row in range(3)]
    assert [row.get_ylabel().split(",")[0] for row in rows] == ["axial", "coronal", "sagittal"]
    assert rows[0].get_ylabel() == "axial, slice 3"
    assert [row.get_aspect() for row in rows] == pytest.approx([1.5, 3.0, 2.0])
    axial = np.asarray(rows[0].get_images()[0].get_array())
    assert axial.shape == (10, 12, 3) and rows[0].get_images()[0].origin == "upper"
    # In front is up, the patient's left is at the right.
    assert np.argwhere(axial[..., 0] == 1).tolist() == [[1, 10]]
    for panel, sides in ((0, "RLAP"), (4, "RLSI"), (8, "APSI")):
        letters = texts(figure, panel)
        left, right, top, bottom = (letters[side] for side in sides)
        assert left[0] < 0.1 and right[0] > 0.9 and top[1] > 0.9 and bottom[1] < 0.1
    assert all(row.get_images()[0].origin == "lower" for row in rows[1:])
    # What is coloured also has a number, from the label map that is drawn.
    coloured = np.asarray(figure.axes[1].get_images()[0].get_array())
    assert np.array_equal(np.ptp(coloured, axis=-1) > 0, truth[3] > 0)
    x, y = texts(figure, 1)["2"]
    assert truth[3][int(y), int(x)] == 2 and "2" not in texts(figure, 0)


def test_a_legend_of_thirteen_organs_is_inside_the_picture() -> None:
    labels = {name: value for value, name in enumerate(ORGANS, 1)}
    truth = np.arange(14 * 14, dtype=np.uint8).reshape(1, 14, 14).repeat(5, axis=0) % 14
    figure = overlay_figure(np.zeros(truth.shape), truth, {"fusion": truth}, (1.0, 1.0, 1.0), labels)
    figure.canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"{value} {name}" for name, value in labels.items()]
    box, whole = legend.get_window_extent(), figure.bbox
    assert box.x0 >= 0 and box.x1 <= whole.x1 and box.y0 >= 0
    assert all(box.y1 <= axis.get_window_extent().y0 for axis in figure.axes)


@pytest.mark.parametrize(
    ("channel", "structures", "dataset", "window"),
    [
        ("CT", ["liver", "spleen"], "Dataset001_Abdomen", (-160.0, 240.0)),
        ("ct", ["left lung", "right lung", "trachea"], "Dataset001_Chest", (-1350.0, 150.0)),
        ("CT", ["cancer"], "Dataset006_Lung", (-1350.0, 150.0)),
        ("CT", ["vertebrae_L1", "hip_left"], "Dataset001_A", (-500.0, 1300.0)),
        ("CT", ["hippocampus", "tribe"], "Dataset001_A", (-160.0, 240.0)),
    ],
)
def test_ct_is_shown_in_a_window_in_hu(
    channel: str, structures: list[str], dataset: str, window: tuple[float, float]
) -> None:
    chosen = choose_window(np.linspace(-1000, 2000, 1000), channel, structures, dataset)
    assert (chosen.low, chosen.high) == window
    assert chosen.name.endswith(f" window, {window[0]:.0f} to {window[1]:.0f} HU")
    assert chosen.apply(np.array([-2000, sum(window) / 2, 3000])).tolist() == [0.0, 0.5, 1.0]


def test_a_window_can_be_asked_for() -> None:
    values = np.linspace(-1000, 2000, 1000)
    chosen = choose_window(values, "CT", ["liver"], ct_window=(-1000.0, 400.0))
    assert (chosen.low, chosen.high, chosen.name) == (-1000, 400, "window from -1000 to 400 HU")
    assert choose_window(values, "T2", ["liver"], ct_window=(-1000.0, 400.0)).low > -1000  # it is for CT


def test_other_intensities_are_shown_by_percentiles() -> None:
    values = np.arange(1001.0)
    for channel, found in (("T2", values), ("CT", values / 1000)):
        chosen = choose_window(found, channel, ["liver"])
        assert (chosen.low, chosen.high) == pytest.approx((found[10], found[990]))
        assert chosen.name == "window from 1 to 99 % of intensities"
    flat = choose_window(np.full(5, 7.0), "T2")
    assert flat.apply(np.full(5, 7.0)).tolist() == [0.0] * 5


def differences(colours: tuple[str, ...], vision: str) -> np.ndarray:
    """CIEDE2000 of every pair of colours, as seen with a form of colour blindness."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ VISIONS[vision].T, 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)[None])[0]
    return np.asarray(deltaE_ciede2000(lab[:, None], lab[None]))


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize(("colours", "first"), [(STRUCTURE_COLOURS, 6), (PALETTE, 4)])
def test_colour_blind_readers_can_tell_neighbours_apart(colours: tuple[str, ...], first: int, vision: str) -> None:
    found = differences(colours, vision)
    assert min(found[i, i - 1] for i in range(len(colours))) >= 20
    assert found[:first, :first][np.triu_indices(first, 1)].min() >= 15
    assert found[np.triu_indices(len(colours), 1)].min() >= (7 if vision == "tritanopia" else 11)


def test_a_spread_that_is_not_known_has_no_band() -> None:
    """One seed; a band of width 0 would say that nothing varies."""
    figure = fraction_figure(
        {"one": {0.1: (0.7, None), 1.0: (0.8, None)}, "two": {0.1: (0.6, 0.02), 1.0: (0.8, 0.01)}},
        {"one": "one seed", "two": "two seeds"},
        "mean Dice",
    )
    (axis,) = figure.axes
    assert axis.get_ylabel() == "mean Dice"
    unknown, known = ([path for path in band.get_paths() if len(path)] for band in axis.collections)
    assert unknown == [] and known[0].get_extents().bounds == pytest.approx((10, 0.58, 90, 0.23))
    assert [line.get_ydata().tolist() for line in axis.lines] == [[0.7, 0.8], [0.6, 0.8]]


@pytest.mark.parametrize("title", ["nnU-Net", "fusion of ViT and UNETR++, co-pre-training, reconstruction only"])
def test_long_titles_are_not_cut_off(title: str) -> None:
    """At the edges of the picture; also, the differences keep half of its width."""
    found = Comparison(0.02, 0.01, 0.03, *10 * [0.01], cases=20, patients=20, folds=5, seeds=(3, 3))
    figure = difference_figure({title: found, "short": found}, "mean Dice", title)
    figure.canvas.draw()
    (axis,) = figure.axes
    texts = [text for text in (*axis.get_yticklabels(), axis.xaxis.label, *figure.texts) if text.get_text()]
    assert len(texts) == 3
    for extent in (text.get_window_extent() for text in texts):
        assert extent.x0 >= 0 and extent.y0 >= 0 and extent.x1 <= figure.bbox.width and extent.y1 <= figure.bbox.height
    assert axis.get_window_extent().width > figure.bbox.width / 2


@pytest.mark.parametrize("betti", [False, True])
def test_every_structure_is_drawn_with_its_betti_error_where_it_was_computed(betti: bool) -> None:
    scores = {"dice": 0.8, "hd95": 5.0, "betti_error": 2.0 if betti else np.nan}
    cost = Cost(1.0, 0.0, None, 1.0, None, None, None, None, 1.0)
    row = Row({"organ": scores}, scores, {}, None, 1, {"one": {"organ": scores}}, 1, None, cost)
    figure = structure_figure({"a": row}, {"a": "A"})
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["Dice", "HD95 in mm", *["Betti error"] * betti]
    dots = [axis.collections[0].get_offsets()[0][1] for axis in figure.axes]
    assert dots == [0.8, 5.0, *[2.0] * betti]


def test_recipes_have_markers_of_their_own() -> None:
    assert len(set(MARKERS)) == len(PALETTE)
    figure = case_figure({name: [[0.1], [0.2]] for name in "ab"}, {"a": "A", "b": "B"}, "Dice")
    dots = [found for found in figure.axes[0].collections if len(found.get_offsets()) == 2]
    first, second = (found.get_paths()[0].vertices for found in dots)
    assert first.shape != second.shape
