import json
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_topomae.data.cases import (
    check_fold,
    check_patients,
    hash_images,
    hash_json,
    hash_json_file,
    intensity_statistics,
    record_cases,
)
from nnunet_topomae.data.patients import Patients


def test_hash_images_is_sha256_by_sorted_case(tmp_path: Path) -> None:
    (tmp_path / "b.b2nd").write_bytes(b"abc")
    (tmp_path / "a.npz").write_bytes(b"")
    hashes = hash_images(tmp_path, ["b", "a"])
    # SHA-256 of "abc" and of the empty string, from FIPS 180-4's examples.
    assert list(hashes) == ["a", "b"]
    assert hashes["b"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hashes["a"] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_missing_image_is_an_error_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nnUNetv2_preprocess"):
        hash_images(tmp_path, ["a"])


def test_hash_json_ignores_key_order() -> None:
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1})
    assert hash_json({"a": 1}) != hash_json({"a": 2})


def test_a_fold_that_nobody_has_made_is_refused(tmp_path: Path) -> None:
    splits = tmp_path / "splits_final.json"
    with pytest.raises(ValueError, match="fold 'all'"):
        check_fold("abcd", 0, splits)
    with pytest.raises(ValueError, match="fold 5 does not exist: there is no .*so nnU-Net makes 5 folds.*--preset"):
        check_fold("abcde", 5, splits)
    check_fold("abcd", "all", splits)
    check_fold("abcde", 4, splits)
    splits.write_text(json.dumps([{"train": ["a"], "val": ["b"]}] * 2))
    check_fold("abcd", 1, splits)
    for fold in (2, -1):
        with pytest.raises(
            ValueError, match=f"fold {fold} does not exist: .*splits_final.json has 2 folds.*random split"
        ):
            check_fold("abcd", fold, splits)


def test_a_fold_with_a_patient_on_both_sides_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "splits_final.json"
    check_patients(["p1_a", "p1_b"], ["p2_a"], Patients("^([^_]+)_"), file)
    check_patients(["p1_a"], ["p1_b"], Patients(None), file)
    with pytest.raises(ValueError, match=r"trains on other scans \(p1_a\).*splits_final.json"):
        check_patients(["p1_a", "p3_a"], ["p1_b"], Patients("^([^_]+)_"), file)


def test_patients_are_those_of_the_plan_or_of_the_converters_table(tmp_path: Path) -> None:
    assert Patients.of_dataset(None, tmp_path).of("a_1") == "a_1"
    (tmp_path / "patients.json").write_text('{"a_1": "anna"}')
    assert Patients.of_dataset(None, tmp_path).of("a_1") == "anna"
    assert Patients.of_dataset("^([^_]+)_", tmp_path).of("a_1") == "a"
    with pytest.raises(ValueError, match="no patient for case b_1"):
        Patients.of_dataset(None, tmp_path).of("b_1")
    assert Patients.of_dataset(None, tmp_path, complete=False).shared(["a_1", "b_1"], ["b_1"]) == ["b_1"]


def test_a_continued_training_remembers_the_cases_it_read_before(tmp_path: Path) -> None:
    assert record_cases({"b": "1"}, tmp_path / "read.json", continued=False) == {"b": "1"}
    assert record_cases({"a": "2"}, tmp_path / "read.json", continued=True) == {"a": "2", "b": "1"}
    assert record_cases({"a": "2"}, tmp_path / "read.json", continued=False) == {"a": "2"}
    (tmp_path / "read.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"read\.json is not JSON"):
        record_cases({"a": "2"}, tmp_path / "read.json", continued=True)


def test_a_damaged_file_of_splits_is_named(tmp_path: Path) -> None:
    file = tmp_path / "splits_final.json"
    assert hash_json_file(file) is None
    file.write_text('[{"train": ')
    with pytest.raises(ValueError, match=r"splits_final\.json is not JSON"):
        hash_json_file(file)


_WRITER = """
import sys
from pathlib import Path
from nnunet_topomae.data.cases import record_cases

name, file = sys.argv[1], Path(sys.argv[2])
file.with_name(f"ready{name}").touch()
while len(list(file.parent.glob("ready*"))) < 2:
    pass
for _ in range(400):
    record_cases({f"{name}{n}": "hash" for n in range(50)}, file, continued=False)
"""


@pytest.mark.slow
def test_two_processes_write_the_same_list_at_once(tmp_path: Path) -> None:
    file = tmp_path / "cases_read.json"
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, name, str(file)], stderr=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    while any(writer.poll() is None for writer in writers):
        if file.is_file():
            assert len(json.loads(file.read_text())) == 50
    for writer in writers:
        assert writer.returncode == 0, writer.communicate()[1]
    assert {path.name for path in tmp_path.iterdir()} == {"cases_read.json", "readya", "readyb"}


def test_label_derived_intensities_are_said() -> None:
    measured, given = {"mean": 1.0}, {"mean": 1.0, "source": "published window -175..250"}
    assert intensity_statistics(["ZScoreNormalization"], {"0": measured}) == "of each image alone"
    two = ["ZScoreNormalization", "CTNormalization"]
    assert "validation cases included" in intensity_statistics(two, {"0": given, "1": measured})
    assert intensity_statistics(two, {"0": measured, "1": given}) == "published window -175..250"
