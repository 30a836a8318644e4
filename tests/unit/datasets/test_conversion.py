"""Converters, on miniature copies of each download's layout."""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from nnunet_topomae.commands.convert import add_arguments, run
from nnunet_topomae.datasets.acdc import find_acdc
from nnunet_topomae.datasets.btcv import BTCV_LABELS, SYNAPSE_LABELS, find_btcv, find_synapse
from nnunet_topomae.datasets.conversion import RECORD, Download, Target, convert
from nnunet_topomae.datasets.msd import find_msd
from nnunet_topomae.datasets.reading import read_image
from nnunet_topomae.datasets.splits import PublishedSplit
from nnunet_topomae.plans.preset import load_preset

SHAPE = (5, 7, 9)  # (z, y, x)
SPACING = (0.7, 0.8, 2.5)  # (x, y, z) in mm
RAI = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)  # LPS in SimpleITK's words
LEFT_FIRST = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


def write(path: Path, array: np.ndarray, direction: Sequence[float] = RAI, origin: Sequence[float] = (1, 2, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=False)
    if array.ndim == 3:
        image.SetSpacing(SPACING)
        image.SetOrigin([float(value) for value in origin])
        image.SetDirection(direction)
    else:
        image.SetSpacing((*SPACING, 1.0))
    sitk.WriteImage(image, path)
    return path


def image_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(-500, 500, SHAPE).astype(np.int16)


def label_of(values: Sequence[int]) -> np.ndarray:
    return np.resize(np.asarray(values, dtype=np.uint8), SHAPE)


def read(path: Path) -> np.ndarray:
    array: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(path))
    return array


@pytest.fixture
def btcv(tmp_path: Path) -> Path:
    """RawData of BTCV with the 30 numbers of its training cases and 2 of its test cases."""
    root = tmp_path / "RawData"
    for number in (*range(1, 11), *range(21, 41)):
        direction = LEFT_FIRST if number == 2 else RAI
        write(root / f"Training/img/img{number:04d}.nii.gz", image_of(number), direction)
        write(root / f"Training/label/label{number:04d}.nii.gz", label_of(range(14)), direction)
    for number in (61, 62):
        write(root / f"Testing/img/img{number:04d}.nii.gz", image_of(number))
    return root


@pytest.fixture
def acdc(tmp_path: Path) -> Path:
    root = tmp_path / "ACDC/database"
    patients = [("training", number) for number in range(1, 7)] + [("testing", 101)]
    for part, number in patients:
        folder = root / part / f"patient{number:03d}"
        for frame in (1, 10 + number % 7):
            write(folder / f"{folder.name}_frame{frame:02d}.nii.gz", image_of(number + frame))
            write(folder / f"{folder.name}_frame{frame:02d}_gt.nii.gz", label_of((0, 1, 2, 3)))
        write(folder / f"{folder.name}_4d.nii.gz", np.zeros((2, *SHAPE), np.int16))
        text = f"ED: 1\nES: {10 + number % 7}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
        (folder / "Info.cfg").write_text(text)
    return root


@pytest.fixture
def msd(tmp_path: Path) -> Path:
    """A task with two channels in 4D files, one test image, and the hidden files that macOS leaves behind."""
    root = tmp_path / "Task05_Prostate"
    names = [f"prostate_{number:02d}.nii.gz" for number in range(6)]
    for name in names:
        write(root / "imagesTr" / name, np.stack([image_of(1), image_of(2)]))
        write(root / "labelsTr" / name, label_of((0, 1, 2)), origin=(0, 0, 0))
        (root / "imagesTr" / f"._{name}").write_bytes(b"rubbish")
    write(root / "imagesTs/prostate_99.nii.gz", np.stack([image_of(3), image_of(4)]))
    described = {
        "name": "PROSTATE",
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "PZ", "2": "TZ"},
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "test": ["./imagesTs/prostate_99.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(described))
    return root


def run_convert(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([*arguments, "-np", "1"]))


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's folder of raw data; its other folders are empty."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path / "nnUNet_raw"


@pytest.mark.usefixtures("light_nnunet")
def test_btcv(btcv: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_convert("btcv", str(btcv)) == 0
    folder = raw / "Dataset017_BTCV"
    assert "30 training and 2 test cases" in capsys.readouterr().out
    assert len(list((folder / "imagesTr").iterdir())) == 30 == len(list((folder / "labelsTr").iterdir()))
    assert sorted(path.name for path in (folder / "imagesTs").iterdir()) == [
        "img0061_0000.nii.gz",
        "img0062_0000.nii.gz",
    ]
    described = json.loads((folder / "dataset.json").read_text())
    assert described["labels"] == BTCV_LABELS
    assert described["channel_names"] == {"0": "CT"}
    np.testing.assert_array_equal(read(folder / "labelsTr/img0001.nii.gz"), label_of(range(14)))
    np.testing.assert_array_equal(read(folder / "imagesTr/img0001_0000.nii.gz"), image_of(1))
    # No split is published and every case is a patient: nnU-Net makes the same folds itself.
    assert not (folder / "splits_final.json").exists()
    verify_dataset_integrity(str(folder), num_processes=1)


def test_orientation_is_the_same_in_all_cases(btcv: Path, raw: Path) -> None:
    run_convert("btcv", str(btcv))
    folder = raw / "Dataset017_BTCV"
    image = sitk.ReadImage(folder / "imagesTr/img0002_0000.nii.gz")
    np.testing.assert_allclose(image.GetDirection(), RAI)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), image_of(2)[:, ::-1, ::-1])
    np.testing.assert_array_equal(read(folder / "labelsTr/img0002.nii.gz"), label_of(range(14))[:, ::-1, ::-1])
    original = sitk.ReadImage(btcv / "Training/img/img0002.nii.gz")
    corner = original.TransformIndexToPhysicalPoint((0, 0, 0))
    np.testing.assert_allclose(image.TransformPhysicalPointToIndex(corner), (SHAPE[2] - 1, SHAPE[1] - 1, 0))


def test_synapse_keeps_eight_organs_under_their_names(btcv: Path, raw: Path) -> None:
    assert run_convert("synapse", str(btcv.parent)) == 0  # the folder above RawData
    folder = raw / "Dataset018_Synapse"
    download, converted = label_of(range(14)), read(folder / "labelsTr/img0007.nii.gz")
    assert len(SYNAPSE_LABELS) == 9
    for organ, value in BTCV_LABELS.items():
        expected = SYNAPSE_LABELS.get(organ, 0)
        assert (converted[download == value] == expected).all(), organ
    splits = json.loads((folder / "splits_final.json").read_text())
    assert len(splits) == 6
    assert len(splits[5]["train"]) == 18
    assert splits[5]["val"][:5] == ["img0001", "img0002", "img0003", "img0004", "img0008"]
    assert json.loads((folder / "published_split.json").read_text())["source"] == "derived"


@pytest.mark.usefixtures("light_nnunet")
def test_acdc_keeps_the_frames_of_a_patient_together(acdc: Path, raw: Path) -> None:
    # The real list needs all 100 patients; another of the same kind takes its place here.
    published = PublishedSplit(
        "paper", "test", r"patient(\d{3})", train=("001", "002", "003", "004"), validation=("005",), test=("006",)
    )
    target = Target(raw / "Dataset027_ACDC", published)
    names = sorted(convert(find_acdc(acdc), target))
    assert len(names) == 14
    folder = target.folder
    assert len(list((folder / "imagesTr").iterdir())) == 12
    assert len(list((folder / "labelsTs").iterdir())) == 2
    assert not list(folder.rglob("*4d*"))
    table = json.loads((folder / "patients.json").read_text())
    assert len(table) == 12 and table["patient006_frame01"] == table["patient006_frame16"] == "patient006"
    splits = json.loads((folder / "splits_final.json").read_text())
    for fold in splits:
        patients = {part: {case[:10] for case in fold[part]} for part in fold}
        assert not patients["train"] & patients["val"]
        assert all(len(fold[part]) == 2 * len(patients[part]) for part in fold)
    assert sorted(case for fold in splits[:5] for case in fold["val"]) == sorted(
        name for name in names if name < "patient1"
    )
    assert splits[5]["val"] == ["patient006_frame01", "patient006_frame16"]
    assert json.loads((folder / "published_split.json").read_text())["validation"] == [
        "patient005_frame01",
        "patient005_frame15",
    ]
    verify_dataset_integrity(str(folder), num_processes=1)


def test_part_of_acdc_has_no_published_fold(acdc: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_convert("acdc", str(acdc)) == 0
    assert "published split does not fit these cases: 007, 008" in capsys.readouterr().out
    assert len(json.loads((raw / "Dataset027_ACDC/splits_final.json").read_text())) == 5
    assert not (raw / "Dataset027_ACDC/published_split.json").exists()


def test_acdc_slices_stay_where_they_are(acdc: Path, raw: Path) -> None:
    image = acdc / "training/patient001/patient001_frame01.nii.gz"
    turned = (0.0, 0.6, 0.8, 1.0, 0.0, 0.0, 0.0, 0.8, -0.6)
    for path in (image, image.with_name("patient001_frame01_gt.nii.gz")):
        write(path, read(path), turned)
    list(convert(find_acdc(acdc / "training"), Target(raw / "Dataset027_ACDC")))
    np.testing.assert_array_equal(read(raw / "Dataset027_ACDC/imagesTr/patient001_frame01_0000.nii.gz"), read(image))


@pytest.mark.usefixtures("light_nnunet")
def test_msd_splits_channels(msd: Path, raw: Path) -> None:
    assert run_convert("msd", str(msd)) == 0
    folder = raw / "Dataset005_Prostate"
    for channel in range(2):
        np.testing.assert_array_equal(read(folder / f"imagesTr/prostate_03_000{channel}.nii.gz"), image_of(1 + channel))
    described = json.loads((folder / "dataset.json").read_text())
    assert described["channel_names"] == {"0": "T2", "1": "ADC"}
    assert described["numTraining"] == 6
    assert len(list((folder / "imagesTs").iterdir())) == 2
    assert not list(folder.rglob("._*"))
    verify_dataset_integrity(str(folder), num_processes=1)


@pytest.mark.slow
def test_two_processes_write_the_same(msd: Path, raw: Path) -> None:
    list(convert(find_msd(msd), Target(raw / "Dataset005_One"), 1))
    assert len(list(convert(find_msd(msd), Target(raw / "Dataset006_Two"), 2))) == 7
    for path in (raw / "Dataset005_One").rglob("*.nii.gz"):
        np.testing.assert_array_equal(
            read(path), read(raw / "Dataset006_Two" / path.relative_to(raw / "Dataset005_One"))
        )


def test_running_twice_changes_nothing(msd: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_convert("msd", str(msd))
    before = {path: path.stat().st_mtime_ns for path in raw.rglob("*")}
    capsys.readouterr()
    run_convert("msd", str(msd))
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in raw.rglob("*")} == before


def test_a_changed_download_is_not_mixed_in(msd: Path, raw: Path) -> None:
    run_convert("msd", str(msd))
    write(msd / "labelsTr/prostate_00.nii.gz", label_of((2, 1, 0)), origin=(0, 0, 0))
    with pytest.raises(FileExistsError, match=r"labelsTr/prostate_00.nii.gz.*-d"):
        run_convert("msd", str(msd))


def test_an_id_in_use_is_refused(msd: Path, raw: Path) -> None:
    (raw / "Dataset005_Other").mkdir()
    with pytest.raises(ValueError, match="id 5 is taken by Dataset005_Other"):
        run_convert("msd", str(msd))
    assert run_convert("msd", str(msd), "-d", "55") == 0
    assert (raw / "Dataset055_Prostate/dataset.json").is_file()


def test_nothing_is_half_written(msd: Path, raw: Path) -> None:
    write(msd / "labelsTr/prostate_05.nii.gz", label_of((0, 1, 7)), origin=(0, 0, 0))
    with pytest.raises(ValueError, match=r"prostate_05.nii.gz has label values \[7.0\]; allowed are \[0, 1, 2\]"):
        run_convert("msd", str(msd))
    assert not list(raw.iterdir())


def test_stopping_half_way_leaves_nothing(msd: Path, raw: Path) -> None:
    conversion = convert(find_msd(msd), Target(raw / "Dataset005_Prostate"))
    next(conversion)
    conversion.close()
    assert not list(raw.iterdir())


def test_label_values_that_are_not_whole_are_refused(btcv: Path, raw: Path) -> None:
    path = btcv / "Training/label/label0003.nii.gz"
    write(path, np.full(SHAPE, 1.5, np.float32))
    with pytest.raises(ValueError, match=r"label0003.nii.gz has label values \[1.5\]"):
        run_convert("btcv", str(btcv))


@pytest.mark.parametrize("name", ["img/img0004.nii.gz", "label/label0004.nii.gz"])
def test_missing_pairs_are_errors(btcv: Path, name: str) -> None:
    (btcv / "Training" / name).unlink()
    lacking = "image" if name.startswith("img") else "label map"
    with pytest.raises(ValueError, match=f"0004.nii.gz has no {lacking}"):
        find_btcv(btcv)


def test_geometry_that_does_not_match_is_an_error(btcv: Path, raw: Path) -> None:
    path = btcv / "Training/label/label0005.nii.gz"
    write(path, label_of(range(14)), origin=(1, 2, 30))
    with pytest.raises(ValueError, match=r"label0005.nii.gz does not lie on the grid.*--image-geometry"):
        run_convert("btcv", str(btcv))
    assert run_convert("btcv", str(btcv), "--image-geometry") == 0
    converted = sitk.ReadImage(raw / "Dataset017_BTCV/labelsTr/img0005.nii.gz")
    np.testing.assert_allclose(converted.GetOrigin(), (1, 2, 3))


def test_rounding_in_a_header_is_no_other_geometry(btcv: Path, raw: Path) -> None:
    write(btcv / "Training/label/label0005.nii.gz", label_of(range(14)), origin=(1.01, 2, 3))
    assert run_convert("btcv", str(btcv)) == 0


def test_another_size_is_an_error(btcv: Path, raw: Path) -> None:
    write(btcv / "Training/label/label0005.nii.gz", np.zeros((5, 7, 8), np.uint8))
    with pytest.raises(ValueError, match=r"label0005.nii.gz has \(8, 7, 5\) voxels, its image \(9, 7, 5\)"):
        run_convert("btcv", str(btcv), "--image-geometry")


def skew(path: Path) -> None:
    """Turn one axis of a NIfTI file by three degrees, which ITK refuses to read."""
    image = nibabel.load(path)
    affine = np.asarray(image.affine).copy()
    affine[:3, 0] += 0.05 * affine[:3, 1]
    skewed = nibabel.Nifti1Image(np.asanyarray(image.dataobj), affine)
    skewed.set_qform(None, code=0)
    nibabel.save(skewed, path)


def test_axes_that_are_not_at_right_angles(btcv: Path, raw: Path) -> None:
    before = sitk.ReadImage(btcv / "Training/img/img0005.nii.gz")
    for name in ("img/img0005.nii.gz", "label/label0005.nii.gz"):
        skew(btcv / "Training" / name)
    with pytest.raises(ValueError, match=r"img0005.nii.gz has axes that are not at right angles.*--fix-direction.*Nib"):
        run_convert("btcv", str(btcv))
    assert run_convert("btcv", str(btcv), "--fix-direction") == 0
    image = sitk.ReadImage(raw / "Dataset017_BTCV/imagesTr/img0005_0000.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), image_of(5))
    np.testing.assert_array_equal(read(raw / "Dataset017_BTCV/labelsTr/img0005.nii.gz"), label_of(range(14)))
    np.testing.assert_allclose(image.GetOrigin(), before.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(image.GetSpacing(), before.GetSpacing(), rtol=2e-3)
    # Both axes give way by half of the angle.
    assert np.abs(np.subtract(image.GetDirection(), RAI)).max() == pytest.approx(0.025, rel=0.2)


def test_colour_and_flat_axes_are_refused(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 0.0, 1.0])
    affine[0, 2] = 1.0
    flat = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), affine)
    nibabel.save(flat, tmp_path / "flat.nii")
    with pytest.raises(ValueError, match=r"flat.nii"):
        read_image(tmp_path / "flat.nii", fix_direction=True)


def test_monai_s_copy_of_btcv(btcv: Path, tmp_path: Path) -> None:
    copy = tmp_path / "monai"
    copy.mkdir()
    for old, new in (("Training/img", "imagesTr"), ("Training/label", "labelsTr"), ("Testing/img", "imagesTs")):
        (btcv / old).rename(copy / new)
    (copy / "dataset_0.json").write_text("{}")
    found = find_synapse(copy)
    assert (len(found.cases), found.root) == (32, copy)
    assert found.cases[0].label == copy / "labelsTr/label0001.nii.gz"
    assert load_preset("synapse").split.fits([case.name for case in found.cases if case.training])
    with pytest.raises(FileNotFoundError, match="no imagesTr and labelsTr"):
        find_synapse(btcv)


@pytest.mark.parametrize("folder", ["train_npz", "test_vol_h5"])
def test_transunet_s_slices_are_refused_with_the_reason(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    for source in (tmp_path, tmp_path / folder):
        with pytest.raises(ValueError, match="without voxel spacing.*RawData.zip"):
            find_synapse(source)


def test_older_folds_are_named_before_planning(acdc: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older = raw.parent / "nnUNet_preprocessed/Dataset027_ACDC"
    older.mkdir()
    (older / "splits_final.json").write_text('[{"train": ["patient001_frame01"], "val": ["patient002_frame01"]}]')
    assert run_convert("acdc", str(acdc)) == 0
    printed = capsys.readouterr().out
    assert "Before you plan: fold 0 of" in printed and "Remove it" in printed


def test_an_unreadable_file_is_named(btcv: Path, raw: Path) -> None:
    (btcv / "Training/img/img0006.nii.gz").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"img0006.nii.gz cannot be read"):
        run_convert("btcv", str(btcv))


def test_other_files_among_the_images_are_named(btcv: Path) -> None:
    write(btcv / "Training/img/copy of img0001.nii.gz", image_of(1))
    with pytest.raises(ValueError, match=r"copy of img0001.nii.gz is not named img0001.nii.gz"):
        find_synapse(btcv)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("btcv", "Unpack the download's RawData.zip"),
        ("acdc", "no folders patient001"),
        ("msd", "not named as the download"),
    ],
)
def test_another_folder_is_refused(tmp_path: Path, raw: Path, kind: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_convert(kind, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        run_convert(kind, str(tmp_path / "nowhere"))


def test_acdc_needs_its_info(acdc: Path) -> None:
    info = acdc / "training/patient002/Info.cfg"
    info.write_text("ED: 1\n")
    with pytest.raises(ValueError, match=r"patient002/Info.cfg must have the lines"):
        find_acdc(acdc)
    info.write_text("ED: 1\nES: 9\n")
    with pytest.raises(FileNotFoundError, match=r"patient002_frame09.nii.gz is missing: frame 9 is ES"):
        find_acdc(acdc)
    info.write_text("ED: 1\nES: 1\n")
    with pytest.raises(ValueError, match=r"patient002_frame12.nii.gz is neither frame"):
        find_acdc(acdc)
    info.unlink()
    with pytest.raises(FileNotFoundError, match=r"Info.cfg is missing"):
        find_acdc(acdc)


def test_acdc_needs_label_maps_of_training_frames_only(acdc: Path) -> None:
    (acdc / "testing/patient101/patient101_frame01_gt.nii.gz").unlink()
    assert len(find_acdc(acdc).cases) == 14
    (acdc / "training/patient003/patient003_frame01_gt.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"patient003_frame01_gt.nii.gz is missing"):
        find_acdc(acdc)


def test_msd_lists_and_files_must_agree(msd: Path) -> None:
    extra = write(msd / "imagesTr/prostate_77.nii.gz", image_of(1))
    with pytest.raises(ValueError, match=r"prostate_77.nii.gz is not listed"):
        find_msd(msd)
    extra.unlink()
    shutil.rmtree(msd / "imagesTs")
    with pytest.raises(FileNotFoundError, match=r"prostate_99.nii.gz is listed in dataset.json but missing"):
        find_msd(msd)
    assert len(find_msd(msd, with_test=False).cases) == 6


def test_msd_with_another_number_of_channels(msd: Path, raw: Path) -> None:
    write(msd / "imagesTr/prostate_02.nii.gz", np.stack([image_of(1)] * 3))
    with pytest.raises(ValueError, match=r"prostate_02.nii.gz has 3 channels, the data set has 2"):
        run_convert("msd", str(msd))


def test_the_record_names_every_file(acdc: Path, raw: Path) -> None:
    download: Download = find_acdc(acdc)
    list(convert(download, Target(raw / "Dataset027_ACDC")))
    record = json.loads((raw / "Dataset027_ACDC" / RECORD).read_text())
    assert len(record["files"]) == 28
    assert "training/patient001/patient001_frame01.nii.gz" in record["files"]


def test_presets_fit_what_the_converters_make(btcv: Path) -> None:
    from nnunet_topomae.datasets.conversion import dataset_json
    from nnunet_topomae.plans.preset import check_dataset

    check_dataset(load_preset("btcv"), dataset_json(find_btcv(btcv)))
    check_dataset(load_preset("synapse"), dataset_json(find_synapse(btcv)))
