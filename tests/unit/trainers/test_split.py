import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.trainers.pretrainer import TopoMAEPretrainer

CASES = [f"case_{number}" for number in range(5)]


def test_cases_of_a_new_split_are_plain_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's new splits hold NumPy's strings. In a manifest, `doctor` would take them for foreign code."""
    training, validation = make_trainer(tmp_path, monkeypatch).do_split()
    assert (training, validation) == (CASES[:4], CASES[4:])
    assert {type(case) for case in training + validation} == {str}


def make_trainer(folder: Path, monkeypatch: pytest.MonkeyPatch, fold: int | str = 0) -> Any:
    """A trainer of five cases, as far as folds are concerned."""
    monkeypatch.setattr(nnUNetTrainer, "do_split", lambda self: (np.array(CASES[:4]), np.array(CASES[4:])))
    trainer: Any = TopoMAEPretrainer.__new__(TopoMAEPretrainer)
    trainer.preprocessed_dataset_folder_base = trainer.preprocessed_dataset_folder = str(folder)
    trainer.dataset_class = SimpleNamespace(get_identifiers=lambda folder: CASES)
    trainer.config, trainer.fold = TopoMAEConfig(), fold
    return trainer


def test_a_random_split_is_never_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="fold 5 does not exist"):
        make_trainer(tmp_path, monkeypatch, fold=5).do_split()


def test_patients_on_both_sides_are_refused_where_a_table_knows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "patients.json").write_text(json.dumps({case: case for case in CASES} | {CASES[4]: CASES[0]}))
    with pytest.raises(ValueError, match=r"trains on other scans \(case_0\)"):
        make_trainer(tmp_path, monkeypatch).do_split()
    assert make_trainer(tmp_path, monkeypatch, fold="all").do_split()[1] == CASES[4:]
