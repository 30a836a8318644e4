"""Images and label maps that nobody can plan with: `plan` ends with one line that names the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunet_topomae.cli import USER_ERROR, main
from nnunet_topomae.datasets.fingerprint import failures_name_the_image, unusable_file
from nnunet_topomae.plans.planner import TopoMAEPlanner

pytestmark = pytest.mark.usefixtures("light_nnunet")

SHAPE = (6, 8, 10)
# ITK's reader of NIfTI takes NaN and infinity for 0, that of NRRD does not.
DESCRIPTION = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nrrd"}


def _write(file: Path, values: np.ndarray) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(values), str(file))


@pytest.fixture
def raw(nnunet_env: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cases that are fine."""
    monkeypatch.setattr("nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor.sleep", lambda _: None)
    folder = nnunet_env.raw / "Dataset005_Two"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(1)
    for case in "ab":
        _write(folder / f"imagesTr/{case}_0000.nrrd", rng.normal(size=SHAPE).astype(np.float32))
        _write(folder / f"labelsTr/{case}.nrrd", (rng.random(SHAPE) > 0.5).astype(np.uint8))
    (folder / "dataset.json").write_text(json.dumps({**DESCRIPTION, "numTraining": 2}))
    return Path(folder)


def _image_with(value: float) -> Callable[[Path], None]:
    values = np.ones(SHAPE, np.float32)
    values[1, 2, 3] = value
    return lambda raw: _write(raw / "imagesTr/b_0000.nrrd", values)


def _without_labels(raw: Path) -> None:
    for case in "ab":
        _write(raw / f"labelsTr/{case}.nrrd", np.zeros(SHAPE, np.uint8))


def _without_images(raw: Path) -> None:
    for file in (raw / "imagesTr").iterdir():
        file.unlink()


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "NaN": (_image_with(np.nan), "imagesTr/b_0000.nrrd has NaN or infinite voxels."),
    "infinite": (_image_with(np.inf), "imagesTr/b_0000.nrrd has NaN or infinite voxels."),
    "nothing annotated": (_without_labels, "labelsTr has a voxel above 0: nothing is annotated."),
    "no label map": (lambda raw: (raw / "labelsTr/a.nrrd").unlink(), "labelsTr/a.nrrd cannot be read: "),
    "not an image": (lambda raw: (raw / "labelsTr/a.nrrd").write_bytes(b"x"), "labelsTr/a.nrrd cannot be read: "),
    "another shape": (
        lambda raw: _write(raw / "labelsTr/b.nrrd", np.ones((5, 8, 10), np.uint8)),
        "labelsTr/b.nrrd has (5, 8, 10) voxels along its axes, but an image of its case has (6, 8, 10).",
    ),
    "no images": (_without_images, "imagesTr has no image whose name ends with .nrrd."),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_plan_names_the_file(damage: str, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, says = DAMAGES[damage]
    change(raw)
    assert main(["plan", "-d", "5", "-npfp", "1", "--no_pp"]) == USER_ERROR
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert says in line and str(raw) in line and line.endswith(", and plan again.")


def test_what_no_image_explains_keeps_its_own_error(raw: Path, tmp_path: Path) -> None:
    assert unusable_file(raw, DESCRIPTION) is None
    said: list[str] = []
    none = tmp_path / "none.json"
    with pytest.raises(ZeroDivisionError), failures_name_the_image(raw, none, DESCRIPTION, said.append):
        1 / 0  # noqa: B018
    (line,) = said
    assert "ZeroDivisionError: division by zero" in line and str(raw) in line


def test_readers_that_say_nothing_and_images_of_several_channels(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = determine_reader_writer_from_dataset_json(DESCRIPTION, verbose=False)
    colours = np.ones((3, *SHAPE), np.float32)
    monkeypatch.setattr(reader, "read_images", lambda self, files: (colours, {}))
    assert unusable_file(raw, DESCRIPTION) is None

    def fail(self: Any, file: str) -> None:
        raise MemoryError

    monkeypatch.setattr(reader, "read_seg", fail)
    assert str(unusable_file(raw, DESCRIPTION)).endswith("labelsTr/a.nrrd cannot be read: MemoryError.")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((5, 0.0), "-gpu_memory_target 0 must be above 0"), ((5, float("nan")), "-gpu_memory_target nan"), ((5,), "NaN")],
)
def test_the_planner_of_nnunets_own_command(raw: Path, nnunet_env: Any, arguments: tuple[Any, ...], says: str) -> None:
    folder = nnunet_env.preprocessed / raw.name
    folder.mkdir()
    (folder / "dataset_fingerprint.json").write_text('{"spacings": [[1, 1, NaN]]}')
    with pytest.raises(ValueError, match=says) as error:
        TopoMAEPlanner(*arguments)
    assert "\n" not in str(error.value)
