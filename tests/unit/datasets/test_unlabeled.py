"""Unlabelled images on a tiny data set whose plan is written by hand."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_topomae.config import PretrainingConfig
from nnunet_topomae.data.cases import hash_images
from nnunet_topomae.data.selection import JointDataset, choose_cases
from nnunet_topomae.datasets.unlabeled import (
    MANIFEST,
    UnlabeledPreprocessing,
    find_images,
    preprocess_unlabeled,
    preprocessing_hash,
    read_manifest,
    unlabeled_folder,
)

DESCRIPTION = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
SHAPE = (6, 9, 8)


def _plans() -> dict[str, Any]:
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": "Dataset005_Tiny",
        "plans_name": "TopoMAEPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {"mean": 0.0}},
        "configurations": {
            "3d_fullres": {
                "data_identifier": "TopoMAEPlans_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "patch_size": [4, 8, 8],
                "batch_size": 2,
                "architecture": {"arch_kwargs": {"strides": [[1, 1, 1]]}},
                "spacing": [2.0, 1.0, 1.0],
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
            }
        },
    }


def _write_image(path: Path, seed: int, values: np.ndarray | None = None, dtype: type = np.float32) -> None:
    image = np.random.default_rng(seed).normal(10.0, 2.0, SHAPE) if values is None else values
    written = sitk.GetImageFromArray(image.astype(dtype))
    written.SetSpacing((1.0, 1.0, 2.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(written, str(path))


@pytest.fixture
def job(tmp_path: Path) -> UnlabeledPreprocessing:
    """Two preprocessed labelled cases, p1_a and p2_a, made from the images with seeds 1 and 2."""
    data_folder = tmp_path / "preprocessed" / "Dataset005_Tiny" / "TopoMAEPlans_3d_fullres"
    data_folder.mkdir(parents=True)
    job = UnlabeledPreprocessing(_plans(), "3d_fullres", DESCRIPTION, data_folder)
    for number in (1, 2):
        file = tmp_path / "labelled" / f"p{number}_a_0000.nii.gz"
        _write_image(file, number)
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        manager = PlansManager(_plans())
        configuration = manager.get_configuration("3d_fullres")
        seg = tmp_path / "labels" / f"p{number}_a.nii.gz"
        _write_image(seg, 0, np.ones(SHAPE), np.uint8)
        configuration.preprocessor_class(verbose=False).run_case_save(
            str(data_folder / f"p{number}_a"), [str(file)], str(seg), manager, configuration, DESCRIPTION
        )
    return job


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three unlabelled images: another scan of patient 1, one of patient 3, and a copy of p2_a."""
    for name, seed in (("p1_b", 11), ("p3_a", 3), ("p9_a", 2)):
        _write_image(tmp_path / "imagesUn" / f"{name}_0000.nii.gz", seed)
    return tmp_path / "imagesUn"


def _preprocess(job: UnlabeledPreprocessing, source: Path, processes: int = 1) -> list[str]:
    return sorted(preprocess_unlabeled(job, find_images(source, ".nii.gz", 1), processes))


def test_images_are_preprocessed_like_the_data_set(job: UnlabeledPreprocessing, source: Path) -> None:
    assert _preprocess(job, source) == ["p1_b", "p3_a", "p9_a"]
    values = nnUNetDatasetBlosc2(str(job.folder)).load_case("p3_a")[0][:]
    assert values.shape == (1, *SHAPE)
    raw = sitk.GetArrayFromImage(sitk.ReadImage(str(source / "p3_a_0000.nii.gz")))
    np.testing.assert_allclose(values[0], (raw - raw.mean()) / raw.std(), atol=1e-4)
    entries = read_manifest(job.data_folder, job.plans, job.configuration)
    assert {case: entry["twin"] for case, entry in entries.items()} == {"p1_b": None, "p3_a": None, "p9_a": "p2_a"}
    assert not [path for path in job.folder.iterdir() if path.name.startswith(".")]


def test_a_second_run_does_only_what_is_new_or_changed(job: UnlabeledPreprocessing, source: Path) -> None:
    _preprocess(job, source)
    before = {path.name: path.stat().st_mtime_ns for path in job.folder.glob("*.b2nd")}
    _write_image(source / "p3_a_0000.nii.gz", 33)
    _write_image(source / "p4_a_0000.nii.gz", 4)
    assert _preprocess(job, source) == ["p1_b", "p3_a", "p4_a", "p9_a"]
    after = {path.name: path.stat().st_mtime_ns for path in job.folder.glob("*.b2nd")}
    changed = {name.split(".")[0].removesuffix("_seg") for name, time in after.items() if before.get(name) != time}
    assert changed == {"p3_a", "p4_a"}


@pytest.mark.slow
def test_several_processes_do_the_same(job: UnlabeledPreprocessing, source: Path) -> None:
    _preprocess(job, source, processes=2)
    several = read_manifest(job.data_folder, job.plans, job.configuration)
    for path in job.folder.iterdir():
        path.unlink()
    _preprocess(job, source)
    assert read_manifest(job.data_folder, job.plans, job.configuration) == several


def test_another_plan_makes_them_stale_and_a_new_run_renews_them(job: UnlabeledPreprocessing, source: Path) -> None:
    _preprocess(job, source)
    plans = _plans()
    plans["configurations"]["3d_fullres"] |= {"patch_size": [8, 8, 8], "batch_size": 9}
    assert len(read_manifest(job.data_folder, plans, "3d_fullres")) == 3
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    assert preprocessing_hash(plans, "3d_fullres") != job.preprocessing
    with pytest.raises(ValueError, match="preprocess-unlabeled -d Dataset005_Tiny -p TopoMAEPlans -c 3d_fullres"):
        read_manifest(job.data_folder, plans, "3d_fullres")
    renewed = UnlabeledPreprocessing(plans, "3d_fullres", DESCRIPTION, job.data_folder)
    (source / "p1_b_0000.nii.gz").unlink()
    _preprocess(renewed, source)
    assert sorted(read_manifest(job.data_folder, plans, "3d_fullres")) == ["p3_a", "p9_a"]
    assert not list(job.folder.glob("p1_b*"))
    assert nnUNetDatasetBlosc2(str(job.folder), ["p3_a"]).load_case("p3_a")[0].shape == (1, 6, 4, 4)


def test_validation_patients_and_copies_of_validation_cases_are_left_out(
    job: UnlabeledPreprocessing, source: Path, tmp_path: Path
) -> None:
    _preprocess(job, source)
    arguments = (job.data_folder, job.plans, job.configuration)
    free = choose_cases((["p1_a"], ["p2_a"]), *arguments, PretrainingConfig())
    assert free.labelled == ("p1_a",)
    assert free.unlabelled == ("p1_b", "p3_a")
    assert free.excluded == {"p9_a": "the same image as validation case p2_a"}
    recorded = free.record(tmp_path, continued=False)
    assert recorded.cases == hash_images(job.data_folder, ["p1_a"])
    assert recorded.unlabeled == hash_images(job.folder, ["p1_b", "p3_a"])
    assert json.loads((tmp_path / "cases_read.json").read_text()) == recorded.cases
    assert json.loads((tmp_path / "unlabeled_read.json").read_text()) == recorded.unlabeled
    grouped = choose_cases((["p2_a"], ["p1_a"]), *arguments, PretrainingConfig(patients="^(.+)_"))
    assert grouped.unlabelled == ("p3_a", "p9_a")
    assert grouped.excluded == {"p1_b": "its patient is validated on"}
    assert "1 training cases and 2 unlabelled images" in str(grouped)
    everything = choose_cases((["p1_a", "p2_a"], ["p1_a", "p2_a"]), *arguments, PretrainingConfig(patients="^(.+)_"))
    assert len(everything.unlabelled) == 3
    without = choose_cases((["p1_a"], ["p2_a"]), *arguments, PretrainingConfig(unlabeled=False))
    assert without.unlabelled == () and without.excluded == {}
    with pytest.raises(ValueError, match=r"other scans \(p1_a\).*splits_final.json"):
        choose_cases((["p1_a"], ["p2_a"]), *arguments, PretrainingConfig(patients="^(p)"))
    # A converter's table says whose scan it is; what it does not name is of nobody else.
    (job.data_folder.parent / "patients.json").write_text('{"p1_a": "anna", "p2_a": "berta", "p1_b": "berta"}')
    known = choose_cases((["p1_a"], ["p2_a"]), *arguments, PretrainingConfig())
    assert known.unlabelled == ("p3_a",) and known.excluded["p1_b"] == "its patient is validated on"


def test_no_unlabelled_images_at_all(job: UnlabeledPreprocessing) -> None:
    assert read_manifest(job.data_folder, job.plans, job.configuration) == {}
    chosen = choose_cases((["p1_a"], ["p2_a"]), job.data_folder, job.plans, job.configuration, PretrainingConfig())
    dataset = JointDataset(nnUNetDatasetBlosc2(str(job.data_folder), ["p1_a"]), chosen.unlabelled)
    assert dataset.identifiers == ["p1_a"]


def test_both_folders_are_one_data_set_that_can_be_pickled(job: UnlabeledPreprocessing, source: Path) -> None:
    _preprocess(job, source)
    labelled = nnUNetDatasetBlosc2(str(job.data_folder), ["p1_a"])
    dataset = pickle.loads(pickle.dumps(JointDataset(labelled, ["p3_a", "p1_b"])))
    assert dataset.identifiers == ["p1_a", "p1_b", "p3_a"]
    for case, folder in (("p1_a", job.data_folder), ("p3_a", job.folder)):
        expected = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)[0][:]
        np.testing.assert_array_equal(dataset.load_case(case)[0][:], expected)


def test_a_name_of_a_labelled_case_is_refused(job: UnlabeledPreprocessing, source: Path) -> None:
    _write_image(source / "p1_a_0000.nii.gz", 5)
    with pytest.raises(ValueError, match="p1_a. Rename"):
        _preprocess(job, source)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.where(np.arange(np.prod(SHAPE)).reshape(SHAPE) == 7, np.nan, 1.0), "NaN or infinite"),
        (np.ones((1, 9, 8)), "not a 3D image"),
        (np.ones((4, 3)), "not a 3D image"),
        (None, "cannot be preprocessed"),
    ],
)
def test_unusable_images_are_named_and_nothing_is_half_written(
    job: UnlabeledPreprocessing, tmp_path: Path, bad: np.ndarray | None, message: str
) -> None:
    file = tmp_path / "bad" / "p0_a_0000.mha"  # NIfTI readers turn NaN into 0
    file.parent.mkdir()
    if bad is None:
        file.write_text("not an image")
    else:
        sitk.WriteImage(sitk.GetImageFromArray(bad.astype(np.float32)), str(file))
    job = replace(job, dataset_json={**DESCRIPTION, "file_ending": ".mha"})
    with pytest.raises(ValueError, match=f"{file}.*{message}"):
        list(preprocess_unlabeled(job, find_images(file.parent, ".mha", 1)))
    assert [path.name for path in job.folder.iterdir()] == [MANIFEST]


def test_wrong_file_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        find_images(tmp_path / "absent", ".nii.gz", 1)
    with pytest.raises(FileNotFoundError, match="neither"):
        find_images(tmp_path, ".nii.gz", 1)
    _write_image(tmp_path / "a_0000.nii.gz", 0)
    with pytest.raises(ValueError, match=r"case a .* has the channels \[0\], the data set has \[0, 1\]"):
        find_images(tmp_path, ".nii.gz", 2)
    _write_image(tmp_path / "b.nii.gz", 0)
    with pytest.raises(ValueError, match="b.nii.gz has no channel number"):
        find_images(tmp_path, ".nii.gz", 1)


def _write_dicom(folder: Path, series: str, first: int, values: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, pixels in enumerate(values):
        image = sitk.GetImageFromArray(pixels.astype(np.int16)[None])[:, :, 0]
        tags = {
            "0008|0060": "MR",
            "0020|000e": series,
            "0020|000d": "1.2.3",
            "0008|0018": f"{series}.{number}",
            "0020|0032": f"0\\0\\{2.0 * number}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(number),
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{first + number:03d}.dcm"))
        writer.Execute(image)


def test_a_dicom_series_is_a_case(job: UnlabeledPreprocessing, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 900, SHAPE)
    source = tmp_path / "dicom"
    _write_dicom(source / "scan", "1.2.3.4", 0, values)
    images = find_images(source, ".nii.gz", 1)
    assert list(images) == ["scan"] and len(images["scan"]) == SHAPE[0]
    assert list(preprocess_unlabeled(job, images)) == ["scan"]
    read = nnUNetDatasetBlosc2(str(job.folder)).load_case("scan")[0][:]
    assert read.shape == (1, *SHAPE)
    np.testing.assert_allclose(read[0], (values - values.mean()) / values.std(), atol=1e-3)
    _write_dicom(source / "scan", "1.2.3.5", 50, values)
    with pytest.raises(ValueError, match="2 DICOM series"):
        find_images(source, ".nii.gz", 1)
    (source / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no DICOM series"):
        find_images(source, ".nii.gz", 1)


def test_unlabeled_folder_is_beside_the_data() -> None:
    assert unlabeled_folder(Path("a/Plans_3d_fullres")) == Path("a/Plans_3d_fullres_unlabeled")


def test_manifest_is_json(job: UnlabeledPreprocessing, source: Path) -> None:
    _preprocess(job, source)
    manifest = json.loads((job.folder / MANIFEST).read_text())
    assert manifest["plans"] == "TopoMAEPlans" and manifest["preprocessing"] == job.preprocessing
