from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.image import imread

from nnunet_topomae.geometry import CropLocation
from nnunet_topomae.training.previews import PLANES, Preview, preview_figure

SHAPE, SPACING = (6, 10, 14), (3.0, 1.5, 0.75)


@pytest.fixture
def preview():
    rng = np.random.default_rng(0)
    volume = rng.standard_normal(SHAPE).astype(np.float32)
    hidden = rng.random(SHAPE) < 0.5
    crop = CropLocation((-1, 2, 3), (5, 12, 17), (9, 20, 30))
    return Preview(
        case="case_007",
        input=volume,
        masked=np.where(hidden, np.float32(0), volume),
        hidden=hidden,
        vit=volume + 1,
        partner=volume * 2,
        spacing=SPACING,
        crop=crop,
        key_points_true=crop.key_points(),
        key_points_vit=crop.key_points() * np.float32(0.5),
        key_points_partner=-crop.key_points(),
    )


def test_round_trip(preview, tmp_path):
    preview.save(tmp_path / "previews")
    assert sorted(p.name for p in (tmp_path / "previews").iterdir()) == ["case_007.npz", "case_007.png"]
    loaded = Preview.load(tmp_path / "previews" / "case_007.npz")
    assert (loaded.case, loaded.spacing, loaded.crop) == (preview.case, preview.spacing, preview.crop)
    for name in (*preview.columns, "hidden", "key_points_true", "key_points_vit", "key_points_partner"):
        stored, original = getattr(loaded, name), getattr(preview, name)
        assert stored.dtype == original.dtype and np.array_equal(stored, original), name
    assert imread(tmp_path / "previews" / "case_007.png").std() > 0.05


@pytest.mark.parametrize(("absent", "titles"), [("vit", "Partner's reconstruction"), ("partner", "ViT reconstruction")])
def test_a_network_that_was_not_trained_has_no_column(preview, tmp_path, absent, titles):
    alone = replace(preview, **{absent: None, f"key_points_{absent}": None})
    alone.save(tmp_path)
    loaded = Preview.load(tmp_path / "case_007.npz")
    assert getattr(loaded, absent) is None and getattr(loaded, f"key_points_{absent}") is None
    assert loaded.columns == tuple(name for name in preview.columns if name != absent)
    panels = preview_figure(loaded).axes
    assert len(panels) == 9
    assert [panel.get_title() for panel in panels[:3]] == ["Input", "Masked", titles]


def test_boundary_reconstruction_is_shown_as_it_is_next_to_its_target(preview, tmp_path):
    corrupted, boundaries = preview.input[::-1].copy(), np.random.default_rng(1).random(SHAPE, np.float32)
    changes = {"masked": corrupted, "vit": None, "key_points_vit": None}
    replace(preview, **changes, boundaries=boundaries, boundaries_partner=boundaries**2).save(tmp_path)
    loaded = Preview.load(tmp_path / "case_007.npz")
    columns = ("input", "masked", "partner", "boundaries", "boundaries_partner")
    assert loaded.columns == columns and loaded.boundaries_vit is None
    panels = preview_figure(loaded).axes
    titles = ["Input", "Corrupted and masked", "Partner's reconstruction", "Boundaries", "Partner's boundaries"]
    assert [panel.get_title() for panel in panels] == [*titles, *[""] * 10]
    assert replace(loaded, hidden=np.zeros(SHAPE, bool)).title("masked") == "Corrupted"
    low, high = np.percentile(preview.input, (0.5, 99.5))
    assert np.array_equal(loaded.masked, corrupted)
    images = dict(zip(columns, (np.asarray(panel.images[0].get_array()) for panel in panels[5:10]), strict=True))
    # No voxel of a reconstruction is replaced by the input; boundaries have a window of their own.
    assert np.allclose(images["partner"][..., 0], np.clip((preview.partner[:, 5] - low) / (high - low), 0, 1))
    assert np.allclose(images["boundaries"][..., 0], boundaries[:, 5])
    assert np.allclose(images["boundaries_partner"][..., 0], boundaries[:, 5] ** 2)
    blue = np.ptp(images["masked"], axis=-1) > 0
    assert np.array_equal(blue, loaded.hidden[:, 5])


def test_saving_again_replaces(preview, tmp_path):
    preview.save(tmp_path)
    replace(preview, vit=preview.vit + 5).save(tmp_path)
    assert np.array_equal(Preview.load(tmp_path / "case_007.npz").vit, preview.vit + 5)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failed_write_leaves_the_old_file(preview, tmp_path, monkeypatch):
    preview.save(tmp_path)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        replace(preview, vit=preview.vit + 5).save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case_007.npz", "case_007.png"]
    assert np.array_equal(Preview.load(tmp_path / "case_007.npz").vit, preview.vit)


def test_figure_shows_every_panel_in_the_aspect_of_the_voxels(preview):
    figure = preview_figure(preview)
    panels = figure.axes
    assert len(panels) == len(PLANES) * len(preview.columns)
    expected = {0: (10, 14, 1.5 / 0.75), 1: (6, 14, 3.0 / 0.75), 2: (6, 10, 3.0 / 1.5)}
    for plane, (height, width, aspect) in expected.items():
        for panel in panels[4 * plane : 4 * plane + 4]:
            assert panel.images[0].get_array().shape == (height, width, 3)
            assert panel.get_aspect() == pytest.approx(aspect)


def test_figure_shows_the_middle_slices_in_one_window(preview):
    panels = preview_figure(preview).axes
    low, high = np.percentile(preview.input, (0.5, 99.5))
    composed = np.where(preview.hidden, preview.vit, preview.input)
    shown = np.asarray(panels[4 + 2].images[0].get_array())  # coronal, ViT
    assert np.allclose(shown[..., 0], np.clip((composed[:, 5, :] - low) / (high - low), 0, 1))
    masked = np.asarray(panels[8 + 1].images[0].get_array())  # sagittal, masked
    grey = np.ptp(masked, axis=-1) == 0
    assert np.array_equal(~grey, preview.hidden[:, :, 7])


def test_figure_does_not_touch_pyplot(preview):
    before = pyplot.get_fignums()
    preview_figure(preview)
    assert pyplot.get_fignums() == before


def test_bad_values_raise(preview):
    with pytest.raises(ValueError, match="plain file name"):
        replace(preview, case="../case")
    with pytest.raises(ValueError, match="three positive"):
        replace(preview, spacing=(3.0, 0.0, 1.0))


def test_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", input=np.zeros(SHAPE))
    with pytest.raises(ValueError, match="is not a preview: it lacks"):
        Preview.load(tmp_path / "other.npz")
