"""Intensity statistics without labels, and the plans that hold them."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_topomae.architectures.memory import GIB, TrainingMemory
from nnunet_topomae.commands.plan import add_arguments, run
from nnunet_topomae.data.cases import intensity_statistics
from nnunet_topomae.datasets.intensities import LABEL_FREE, describe_intensities, sample_bodies, sample_body


def body_in_air(seed: int) -> np.ndarray:
    image = np.full((6, 20, 22), -1000.0, np.float32)
    image[:, 5:15, 6:16] = np.random.default_rng(seed).normal(50.0, 20.0, (6, 10, 10))
    return image


def test_air_is_left_out() -> None:
    image = body_in_air(0)
    sample = sample_body(image, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(sample), np.sort(image[image > -500.0]))


def test_a_constant_image_counts_as_a_whole() -> None:
    sample = sample_body(np.full((2, 3, 4), 7.0, np.float32), np.random.default_rng(0))
    assert sample.size == 24
    assert set(sample) == {7.0}


def test_large_bodies_are_sampled() -> None:
    image = np.zeros((60, 70, 80), np.float32)
    image[10:] = np.random.default_rng(1).normal(100.0, 3.0, (50, 70, 80))
    sample = sample_body(image, np.random.default_rng(0))
    assert sample.size == 100_000
    assert sample.mean() == pytest.approx(100.0, abs=0.1)
    np.testing.assert_array_equal(sample, sample_body(image, np.random.default_rng(0)))


def test_statistics_are_those_of_numpy() -> None:
    parts = [np.arange(5, dtype=np.float32), np.array([100.0], np.float32)]
    described = describe_intensities(parts)
    values = np.array([0, 1, 2, 3, 4, 100.0])
    assert described["mean"] == values.mean()
    assert described["std"] == values.std()
    assert described["percentile_99_5"] == np.percentile(values, 99.5)
    assert (described["min"], described["max"], described["median"]) == (0.0, 100.0, 2.5)


def make_raw(folder: Path, channels: tuple[str, ...], labels_at: int) -> dict[str, Any]:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(2):
        labels = np.zeros((6, 20, 22), np.uint8)
        labels[2:4, labels_at : labels_at + 4, 8:12] = 1
        sitk.WriteImage(sitk.GetImageFromArray(labels), folder / f"labelsTr/c{number}.nii.gz")
        for channel in range(len(channels)):
            image = sitk.GetImageFromArray(body_in_air(number + 10 * channel))
            sitk.WriteImage(image, folder / f"imagesTr/c{number}_{channel:04d}.nii.gz")
    description = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": {"background": 0, "organ": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return description


def plan(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(["-d", "3", "-npfp", "1", "--no_pp", *arguments]))


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for kind in ("raw", "preprocessed", "results"):
        (tmp_path / kind).mkdir()
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
    return tmp_path


@pytest.mark.usefixtures("light_nnunet")
def test_plans_without_labels_do_not_depend_on_labels(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = TrainingMemory(fixed=0, per_sample=GIB)  # sizes are not what is tested
    monkeypatch.setattr("nnunet_topomae.plans.planner.estimate_need", lambda *_: need)
    read = []
    for number, labels_at in enumerate((6, 0)):  # in the body; outside of it
        name = f"Dataset003_Test{number}"
        make_raw(folders / "raw" / name, ("CT", "ct"), labels_at)
        assert plan("--label-free") == 0
        file = folders / "preprocessed" / name / "TopoMAEPlans_labelfree.json"
        plans = json.loads(file.read_text())
        read.append(plans["foreground_intensity_properties_per_channel"])
        assert plans["configurations"]["3d_fullres"]["data_identifier"] == "TopoMAEPlans_labelfree_3d_fullres"
        (folders / "raw" / name).rename(folders / f"old{number}")
        (folders / "preprocessed" / name).rename(folders / f"old_preprocessed{number}")
    assert read[0] == read[1]
    assert read[0]["0"] != read[0]["1"]
    body = [image[image > -500.0] for image in map(body_in_air, range(2))]
    assert read[0]["0"]["mean"] == pytest.approx(np.concatenate(body).mean(), rel=1e-6)
    said = intensity_statistics(["CTNormalization", "CTNormalization"], read[0])
    assert said == LABEL_FREE


def test_cases_are_read_in_order(folders: Path) -> None:
    folder = folders / "raw" / "Dataset003_Test"
    description = make_raw(folder, ("CT",), 6)
    files = [[folder / f"imagesTr/c{number}_0000.nii.gz"] for number in range(2)]
    sampled = list(sample_bodies(files, description))
    for number in range(2):
        image = body_in_air(number)
        np.testing.assert_array_equal(np.sort(sampled[number][0]), np.sort(image[image > -500.0]))


def test_where_it_changes_nothing_it_is_refused(folders: Path) -> None:
    make_raw(folders / "raw" / "Dataset003_Test", ("MR",), 6)
    with pytest.raises(ValueError, match="No channel of this data set is named CT"):
        plan("--label-free")
    with pytest.raises(ValueError, match="--label-free does not go with --preset synapse"):
        plan("--label-free", "--preset", "synapse")
