from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_topomae.training.sources import PretrainingSource, read_checkpoint


def _source(tmp_path: Path, **kwargs: Any) -> PretrainingSource:
    values: dict[str, Any] = {
        "results": tmp_path,
        "dataset": "Dataset123_A",
        "plans": "nnUNetPlans",
        "configuration": "3d_fullres",
        "fold": 2,
    }
    return PretrainingSource(**(values | kwargs))


def test_source_is_the_pre_training_of_the_same_fold(tmp_path: Path) -> None:
    folder = tmp_path / "TopoMAEPretrainer__nnUNetPlans__3d_fullres" / "fold_2"
    with pytest.raises(FileNotFoundError) as error:
        _source(tmp_path).require()
    assert "nnUNetv2_train Dataset123_A 3d_fullres 2 -tr TopoMAEPretrainer -p nnUNetPlans\n" in str(error.value)
    folder.mkdir(parents=True)
    (folder / "checkpoint_latest.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"-p nnUNetPlans --c\n"):
        _source(tmp_path).require()
    (folder / "checkpoint_final.pth").touch()
    assert _source(tmp_path).require() == folder / "checkpoint_final.pth"


def test_source_from_the_plan(tmp_path: Path) -> None:
    assert _source(tmp_path, choice="scratch").from_scratch
    with pytest.raises(FileNotFoundError, match="Remove the key"):
        _source(tmp_path, choice=str(tmp_path / "none.pth")).require()


def test_a_given_file_goes_before_the_plans_choice(tmp_path: Path) -> None:
    given = tmp_path / "given.pth"
    source = _source(tmp_path, choice=str(tmp_path / "chosen.pth"), given=given)
    with pytest.raises(FileNotFoundError, match=f"-pretrained_weights names {given}"):
        source.require()
    given.touch()
    assert source.require() == given
    contradictory = _source(tmp_path, choice="scratch", given=given)
    assert not contradictory.from_scratch
    with pytest.raises(ValueError, match=f"'scratch', but -pretrained_weights names {given}. Leave one of them out"):
        contradictory.require()


def test_read_checkpoint_refuses_other_files(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint_final.pth"
    for content in ({"network_weights": {}}, {"topomae": {"role": "finetuning"}}):
        torch.save(content, file)
        with pytest.raises(ValueError, match="not a checkpoint of TopoMAEPretrainer"):
            read_checkpoint(file)
