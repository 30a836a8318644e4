import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.data.patients import Patients
from nnunet_topomae.nnunet.names import PRETRAINER
from nnunet_topomae.training.checks import (
    check_no_leak,
    check_same_dataset,
    check_same_plan,
    check_trained,
    described_size,
    normalization_differences,
    plan_differences,
    unknown_facts,
)

FILE = Path("c.pth")


def _facts(**changes: Any) -> dict[str, Any]:
    statistics = {"percentile_00_5": -57.0, "percentile_99_5": 164.0, "mean": 50.1, "std": 40.5}
    return {
        "patch_size": [16, 32, 24],
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
        "channels": 1,
        "intensities": [statistics, None],
        "architecture": json.loads(json.dumps(TopoMAEConfig().to_plan()["architecture"])),
    } | changes


def _with_architecture(**changes: Any) -> dict[str, Any]:
    facts = _facts()
    return {**facts, "architecture": {**facts["architecture"], **changes}}


def test_another_plan_is_refused_with_both_values() -> None:
    own = {"patch_size": [16, 32, 24], "channels": 1}
    check_same_plan(dict(own), own, Path("c.pth"), PRETRAINER)
    with pytest.raises(ValueError, match=r"patch_size: checkpoint \[8, 8, 8\], plan \[16, 32, 24\]"):
        check_same_plan({**own, "patch_size": [8, 8, 8]}, own, Path("c.pth"), PRETRAINER)


def test_leak_is_refused() -> None:
    manifest = {"dataset": "Dataset001_A", "cases": {"a": "1", "b": "2"}}
    check_no_leak(manifest, "Dataset001_A", ["c"], Path("c.pth"), Patients(None))
    check_no_leak(manifest, "Dataset002_B", ["a"], Path("c.pth"), Patients(None))
    with pytest.raises(ValueError, match=r"1 validation cases of this fold.*\(b\)"):
        check_no_leak(manifest, "Dataset001_A", ["b", "c"], Path("c.pth"), Patients(None))


def test_other_scans_of_a_validation_patient_are_a_leak_too() -> None:
    manifest = {"dataset": "Dataset001_A", "cases": {"1_ED": "x"}, "unlabeled": {"2_ph02": "y"}}
    check_no_leak(manifest, "Dataset001_A", ["2_ED", "1_ES"], Path("c.pth"), Patients(None))
    with pytest.raises(ValueError, match=r"\(1_ED, 2_ph02\)"):
        check_no_leak(manifest, "Dataset001_A", ["2_ED", "1_ES"], Path("c.pth"), Patients("(.+)_"))


def test_another_data_set_is_refused_with_the_key_that_allows_it() -> None:
    check_same_dataset({"dataset": "Dataset001_A"}, "Dataset001_A", FILE)
    with pytest.raises(ValueError, match="on Dataset001_A, this is Dataset002_B.*finetuning.allow_other_dataset=true"):
        check_same_dataset({"dataset": "Dataset001_A"}, "Dataset002_B", FILE)


@pytest.mark.parametrize("key", ["percentile_00_5", "percentile_99_5", "mean", "std"])
def test_intensities_are_compared_with_a_tolerance(key: str) -> None:
    own = _facts()
    for factor, equal in ((1 + 1e-9, True), (1 + 1e-3, False)):
        statistics = {**own["intensities"][0], key: own["intensities"][0][key] * factor}
        found = plan_differences(json.loads(json.dumps(_facts(intensities=[statistics, None]))), own)
        assert (found == []) == equal, found
    assert plan_differences(_facts(intensities=[own["intensities"][0], own["intensities"][0]]), own)
    assert plan_differences(_facts(intensities=None), own)


def test_facts_that_an_earlier_version_did_not_write_are_named_and_not_compared() -> None:
    own = _facts()
    old = {key: value for key, value in own.items() if key != "intensities"}
    assert unknown_facts(old, own) == ["intensities"] and plan_differences(old, own) == []
    assert unknown_facts(own, own) == []
    without_channels = {key: value for key, value in own.items() if key != "channels"}
    assert plan_differences(without_channels, own) == ["channels: checkpoint None, plan 1"]


CT, OTHER_CT = {"mean": 50.0, "std": 40.0}, {"mean": 60.0, "std": 40.0}


def _channels(*statistics: dict[str, float] | None) -> dict[str, Any]:
    """Facts of channels that are CT with statistics, or normalised one by one."""
    schemes = ["ZScoreNormalization" if values is None else "CTNormalization" for values in statistics]
    return _facts(normalization=schemes, intensities=list(statistics), channels=len(schemes))


@pytest.mark.parametrize(
    ("theirs", "ours", "same"),
    [
        ([CT], [{**CT, "mean": 50.0 + 1e-9}], True),
        ([CT], [OTHER_CT], False),
        ([CT], [None], False),
        ([CT, None], [None, CT], False),  # weights of as many channels are copied in order
        ([None], [None, None], True),
        ([CT], [CT, None], True),
        ([CT, None], [CT], True),
        ([CT], [OTHER_CT, None], False),
        ([None], [CT, CT], False),
    ],
)
def test_images_are_normalised_as_in_pre_training(theirs: list[Any], ours: list[Any], same: bool) -> None:
    described, own = _channels(*theirs), _channels(*ours)
    assert (normalization_differences(described, own) == []) == same
    if same:
        assert described_size(described, own, FILE).channels == len(theirs)
        return
    with pytest.raises(ValueError, match=r"normalised in another way \((normalization|intensities): checkpoint"):
        described_size(described, own, FILE)
    with pytest.raises(ValueError, match="another plan") as error:
        check_same_plan(described, own, FILE, PRETRAINER)
    assert "resample" not in str(error.value)


def test_normalisation_that_an_earlier_version_did_not_write_is_not_compared() -> None:
    old = {key: value for key, value in _channels(CT).items() if key != "intensities"}
    assert normalization_differences(old, _channels(OTHER_CT)) == []
    assert normalization_differences(old, _channels(None)) != []


@pytest.mark.parametrize(
    ("key", "value"), [("drop_path", 0.3), ("dropout", 2.0), ("gamma", 0.01), ("projections", [8, 8, 8, 8])]
)
def test_what_does_not_change_the_meaning_of_a_weight_may_differ_in_both_modes(key: str, value: Any) -> None:
    theirs = _with_architecture(**{key: value})
    check_same_plan(theirs, _facts(), FILE, PRETRAINER)
    assert described_size(theirs, _facts(), FILE).channels == 1


@pytest.mark.parametrize(("key", "value"), [("vit", "tiny"), ("dims", [8, 8, 8, 8]), ("upsampling", "trilinear")])
def test_another_architecture_is_refused_in_both_modes(key: str, value: Any) -> None:
    theirs = _with_architecture(**{key: value})
    for check in (partial(check_same_plan, pretrainer=PRETRAINER), described_size):
        with pytest.raises(ValueError, match=f"architecture.{key}: checkpoint .*, plan "):
            check(theirs, _facts(), file=FILE)
        if key == "vit":  # its size means nothing to the partner
            check(theirs, _facts(), file=FILE, taken=("partner",))


def _config(**pretraining: Any) -> dict[str, Any]:
    config = TopoMAEConfig().to_plan()
    return {**config, "pretraining": {**config["pretraining"], **pretraining}}


def test_an_encoder_without_a_loss_is_not_taken() -> None:
    check_trained(_config(), True, True, FILE)
    check_trained(_config(lambda1=0.0), True, True, FILE)  # the consistency terms train the partner
    only_vit = _config(lambda1=0.0, lambda3=0.0)
    check_trained(only_vit, True, False, FILE)
    for takes_vit in (True, False):
        with pytest.raises(ValueError, match=r"the ViT's partner \(pretraining.lambda1 = 0.0.*parts=vit"):
            check_trained(only_vit, takes_vit, True, FILE)
    only_partner = _config(lambda1=1.0, lambda3=0.0)
    check_trained(only_partner, False, True, FILE)
    with pytest.raises(ValueError, match=r"trained the ViT \(pretraining.lambda1 = 1.0.*transfer_parts=partner"):
        check_trained(only_partner, True, True, FILE)
    without_vit = {**_config(), "architecture": {"vit": "none"}}
    check_trained(without_vit, False, True, FILE)
    with pytest.raises(
        ValueError, match=r"trained the ViT \(architecture.vit = 'none'.* export with --encoder partner"
    ):
        check_trained(without_vit, True, False, FILE)
