from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_topomae.trainers.pretrainer import TopoMAEPretrainer


def test_cases_of_a_new_split_are_plain_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's new splits hold NumPy's strings. In a manifest, `doctor` would take them for foreign code."""
    cases = [f"case_{number}" for number in range(5)]
    monkeypatch.setattr(nnUNetTrainer, "do_split", lambda self: (np.array(cases[:4]), np.array(cases[4:])))
    trainer = TopoMAEPretrainer.__new__(TopoMAEPretrainer)
    trainer.preprocessed_dataset_folder_base = trainer.preprocessed_dataset_folder = str(tmp_path)
    trainer.dataset_class = SimpleNamespace(get_identifiers=lambda folder: cases)
    trainer.fold = 0
    training, validation = trainer.do_split()
    assert (training, validation) == (cases[:4], cases[4:])
    assert {type(case) for case in training + validation} == {str}
