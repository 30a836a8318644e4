import json
from pathlib import Path

import pytest

from nnunet_topomae.data.patients import Patients


def test_without_a_rule_every_case_is_a_patient() -> None:
    patients = Patients(None)
    assert patients.of("a_ED") == "a_ED"
    assert patients.shared(["a_ED", "b_ED"], ["b_ED", "a_ES"]) == ["b_ED"]


def test_a_regular_expression_finds_the_patient_in_the_name() -> None:
    patients = Patients(r"^(.+)_[^_]+$")
    assert patients.of("SC_HF_1_ED") == "SC_HF_1"
    assert patients.shared(["2_ph02", "1_ph06", "1_ph02"], ["1_ED", "1_ES"]) == ["1_ph02", "1_ph06"]
    with pytest.raises(ValueError, match="no patient in the case name nounderscore"):
        patients.of("nounderscore")


def test_a_table_names_the_patient(tmp_path: Path) -> None:
    file = tmp_path / "patients.json"
    file.write_text(json.dumps({"scan1": "Ann", "scan2": "Bob", "scan3": "Ann"}))
    patients = Patients(str(file))
    assert patients.shared(["scan2", "scan3"], ["scan1"]) == ["scan3"]
    with pytest.raises(ValueError, match="no patient for case scan4"):
        patients.of("scan4")


@pytest.mark.parametrize(
    ("rule", "message"), [("(", "not a regular expression"), ("a", "0 groups"), ("(a)(b)", "2 groups")]
)
def test_unusable_expressions(rule: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Patients(rule)


def test_unusable_tables(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Patients(str(tmp_path / "absent.json"))
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "half.json").write_text('{"scan1": "A')
    with pytest.raises(ValueError, match=r"half\.json is not JSON"):
        Patients(str(tmp_path / "half.json"))
    with pytest.raises(ValueError, match="from case to patient"):
        Patients(str(tmp_path / "list.json"))
