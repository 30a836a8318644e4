"""Labels that tell left from right, and plans that mirror them all the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_topomae.doctor.checks import check_mirroring
from nnunet_topomae.nnunet.mirroring import left_right_pairs, mirroring_advice

DESCRIPTION = {"labels": {"background": 0, "left_kidney": 1, "right_kidney": 2, "Lung L": 3, "Lung R": 4}}


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["Left Kidney", "liver", "Right Kidney"], [("Left Kidney", "Right Kidney")]),
        (["hip_right", "hip_left"], [("hip_right", "hip_left")]),
        (["kidney_L", "kidney_R"], [("kidney_L", "kidney_R")]),
        (["rkid", "lkid", "rad", "lad"], [("rkid", "lkid")]),
        (["RV", "MYO", "LV"], []),
        (["left_atrium", "liver", "river_bed", "copyright"], []),
        (["lung_upper_lobe_left", "lung_lower_lobe_right"], []),
    ],
)
def test_pairs_differ_in_the_side_only(names: list[str], pairs: list[tuple[str, str]]) -> None:
    assert left_right_pairs(names) == pairs


def plans(mirror_axes: list[int] | None, section: bool = True) -> dict[str, Any]:
    own = {"topomae": {"finetuning": {"mirror_axes": mirror_axes}}} if section else {}
    return {"plans_name": "TopoMAEPlans", "configurations": {"2d": {}, "3d_fullres": own}}


def test_advice_is_given_where_plans_mirror_everything() -> None:
    advice = mirroring_advice(plans(None), DESCRIPTION)
    assert advice.startswith("TopoMAEPlans (3d_fullres) mirrors left and right")
    assert "left_kidney and right_kidney and 1 more pairs" in advice and "mirror_axes=[0,1]" in advice
    assert mirroring_advice(plans([0, 1]), DESCRIPTION) == mirroring_advice(plans([]), DESCRIPTION) == ""
    assert mirroring_advice(plans(None), {"labels": {"background": 0, "liver": 1}}) == ""
    assert mirroring_advice(plans(None, section=False), DESCRIPTION) == ""


def test_the_doctor_looks_at_all_plans(tmp_path: Path) -> None:
    for number, axes in ((1, None), (2, [0, 1])):
        folder = tmp_path / f"Dataset00{number}_A"
        folder.mkdir()
        (folder / "dataset.json").write_text(json.dumps(DESCRIPTION))
        (folder / "TopoMAEPlans.json").write_text(json.dumps(plans(axes)))
        (folder / "splits_final.json").write_text("[]")
    (found,) = check_mirroring(str(tmp_path))
    assert (found.status, found.value) == ("warning", "Dataset001_A, TopoMAEPlans")
    assert check_mirroring(None) == check_mirroring("") == []
