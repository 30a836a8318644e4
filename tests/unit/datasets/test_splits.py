"""Folds by patient, and the published splits."""

import json
from pathlib import Path

import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_topomae.datasets.splits import (
    PublishedSplit,
    check_folds_agree,
    describe_published,
    group_by_patient,
    make_splits,
    place_published,
)
from nnunet_topomae.plans.preset import load_preset, preset_names

SYNAPSE = [f"img{number:04d}" for number in (*range(1, 11), *range(21, 41))]
ACDC = [f"patient{number:03d}_frame{frame:02d}" for number in range(1, 101) for frame in (1, 10)]


def test_without_patients_the_five_folds_are_nnunets_own() -> None:
    cases = [f"case_{number:02d}" for number in range(13)]
    expected = [{part: sorted(map(str, fold[part])) for part in fold} for fold in generate_crossval_split(cases)]
    assert make_splits(cases[::-1]) == expected


def test_published_counts() -> None:
    sizes = {
        "synapse": (SYNAPSE, (18, 0, 12)),
        "acdc": (ACDC, (140, 20, 40)),
        "msd_spleen": ([f"spleen_{number}" for number in range(41)], (33, 6, 2)),
        "msd_lung": ([f"lung_{number:03d}" for number in range(64)], (51, 0, 13)),
    }
    assert {name for name in preset_names() if load_preset(name).split} == set(sizes)
    for name, (cases, expected) in sizes.items():
        split = load_preset(name).split
        assert split is not None
        parts = split.apply(cases)
        assert tuple(len(parts[part]) for part in ("train", "validation", "test")) == expected, name
        assert sorted(case for part in parts.values() for case in part) == sorted(cases)


def test_the_lists_are_those_of_transunet_and_nnformer() -> None:
    synapse, acdc = load_preset("synapse").split, load_preset("acdc").split
    assert synapse is not None
    assert acdc is not None
    tested = {1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38}
    assert {int(number) for number in synapse.test} == tested
    # nnFormer's validation list begins and ends with these, its training list with those.
    assert (acdc.validation[0], acdc.validation[-1]) == ("089", "100")
    assert (acdc.train[0], acdc.train[1], acdc.train[-1]) == ("001", "004", "087")


def test_fold_5_reports_on_the_test_cases_and_leaves_the_validation_cases_out() -> None:
    split = load_preset("acdc").split
    assert split is not None
    fold = make_splits(ACDC, split.patient, split)[5]
    parts = split.apply(ACDC)
    assert fold == {"train": parts["train"], "val": parts["test"]}
    assert not set(parts["validation"]) & {*fold["train"], *fold["val"]}
    described = describe_published(split, ACDC)
    assert described["fold"] == 5
    assert described["test"] == fold["val"]


def test_a_share_is_drawn_from_its_seed_alone() -> None:
    cases = [f"c{number}" for number in range(20)]
    one = PublishedSplit("ours", "x", shares=(0.8, 0.15, 0.05), seed=1)
    assert one.apply(cases) == one.apply(cases[::-1])
    other = PublishedSplit("ours", "x", shares=(0.8, 0.15, 0.05), seed=2)
    assert one.apply(cases) != other.apply(cases)


def test_cases_that_the_split_does_not_know_are_named() -> None:
    split = load_preset("synapse").split
    assert split is not None
    with pytest.raises(ValueError, match="does not fit these cases: 0001"):
        split.apply(SYNAPSE[1:])
    with pytest.raises(ValueError, match="0077"):
        split.apply([*SYNAPSE, "img0077"])


def test_shares_of_few_cases_that_test_on_none_are_refused() -> None:
    split = load_preset("msd_spleen").split
    assert split is not None
    with pytest.raises(ValueError, match="6 patients are too few"):
        split.apply([f"spleen_{number}" for number in range(6)])


def test_names_without_patient_and_too_few_patients_are_refused() -> None:
    with pytest.raises(ValueError, match="no patient in the case name heart_3"):
        group_by_patient(["heart_3"], r"patient(\d+)")
    with pytest.raises(ValueError, match="at least 5 patients, there are 2"):
        make_splits([f"patient{n}_{frame}" for n in range(2) for frame in range(9)], r"(patient\d+)")


def test_the_published_split_is_placed_where_there_are_no_folds(tmp_path: Path) -> None:
    split = load_preset("synapse").split
    assert "no split is published" in place_published(tmp_path, SYNAPSE, None)
    assert "is not written" in place_published(tmp_path, SYNAPSE[1:], split)
    assert not list(tmp_path.iterdir())
    assert "5 as published" in place_published(tmp_path, SYNAPSE, split)
    splits = json.loads((tmp_path / "splits_final.json").read_text())
    assert splits == make_splits(SYNAPSE, published=split)
    assert json.loads((tmp_path / "published_split.json").read_text())["fold"] == 5
    assert "has the published split as fold 5" in place_published(tmp_path, SYNAPSE, split)
    assert json.loads((tmp_path / "splits_final.json").read_text()) == splits
    # Every case is a patient of its own.
    assert not (tmp_path / "patients.json").exists()


def write_folds(folder: Path, folds: object) -> Path:
    file = folder / "splits_final.json"
    file.write_text(json.dumps(folds))
    return file


def test_the_published_split_is_added_to_five_folds_and_mixed_ones_are_named(tmp_path: Path) -> None:
    split = load_preset("acdc").split
    assert split is not None
    mixed = [{"train": ACDC[number::2], "val": ACDC[1 - number :: 2]} for number in (0, 1)]
    folds = [*mixed, *make_splits(ACDC, split.patient)[2:]]
    file = write_folds(tmp_path, folds)
    said = place_published(tmp_path, ACDC, split)
    assert "got the published split as fold 5; folds 0, 1 have scans of one patient on both sides" in said
    assert json.loads(file.read_text()) == [*folds, make_splits(ACDC, split.patient, split)[5]]
    patients = json.loads((tmp_path / "patients.json").read_text())
    assert patients["patient007_frame10"] == patients["patient007_frame01"] == "007" and len(patients) == 200
    assert "has the published split" in place_published(tmp_path, ACDC, split)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([], "has 0 folds, so the published split cannot be fold 5. Move the file away"),
        (
            [{"train": SYNAPSE[:20], "val": SYNAPSE[20:]}] * 6,
            "fold 5 of .*splits_final.json is not the published",
        ),
        ({"train": []}, "not a list of folds"),
        ([{"train": []}], "not a list of folds"),
    ],
)
def test_folds_without_a_place_for_the_published_split_stop_the_command_and_stay(
    tmp_path: Path, folds: object, message: str
) -> None:
    file = write_folds(tmp_path, folds)
    with pytest.raises(ValueError, match=message):
        place_published(tmp_path, SYNAPSE, load_preset("synapse").split)
    assert json.loads(file.read_text()) == folds
    assert list(tmp_path.iterdir()) == [file]


def test_folds_of_raw_and_preprocessed_data_must_agree(tmp_path: Path) -> None:
    raw, preprocessed = tmp_path / "raw", tmp_path / "preprocessed"
    for folder in (raw, preprocessed):
        folder.mkdir()
    folds = make_splits(SYNAPSE)
    write_folds(raw, folds)
    check_folds_agree(raw, preprocessed)
    # The published split may have been added, and the order of cases does not matter.
    write_folds(preprocessed, [{part: fold[part][::-1] for part in fold} for fold in [*folds, folds[0]]])
    check_folds_agree(raw, preprocessed)
    for other in (folds[:4], [*folds[:4], folds[0]]):
        write_folds(preprocessed, other)
        with pytest.raises(ValueError, match=r"fold 4 of .*raw.*splits_final.json is not that of .*Remove it"):
            check_folds_agree(raw, preprocessed)
