from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnunet_topomae.architectures.build import build_copretraining_network, build_fusion_network, build_unetr
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.data.patients import Patients
from nnunet_topomae.training.transfer import (
    UNETR_PARTS,
    PretrainingSource,
    check_no_leak,
    check_same_plan,
    read_checkpoint,
    transfer,
)

TINY = ArchitectureConfig(vit="tiny", dims=(8, 16, 32, 64), depth=1)
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
SHAPE = derive_network_shape((16, 32, 24), STRIDES, TINY)


def _networks(channels: int = 2) -> tuple[nn.Module, nn.Module]:
    pretrained = build_copretraining_network(SHAPE, 2, TINY)
    return pretrained, build_fusion_network(SHAPE, channels, 3, TINY, deep_supervision=True)


def test_transfer_counts_every_weight_once() -> None:
    pretrained, network = _networks()
    fresh = {n: v.clone() for n, v in network.state_dict().items() if n.startswith(("fusion.", "decoder.seg_layers."))}
    weights = pretrained.state_dict()
    result = transfer(weights, network)
    own = network.state_dict()
    assert set(result.matched) | set(result.missing) == set(own) and not set(result.matched) & set(result.missing)
    assert set(result.matched) | set(result.unexpected) == set(weights)
    assert set(result.missing) == set(fresh)
    assert all(torch.equal(own[name], weights[name]) for name in result.matched)
    assert all(torch.equal(own[name], value) for name, value in fresh.items())
    assert f"{len(result.matched)} weights matched" in str(result)


def test_after_transfer_the_encoders_compute_what_they_computed_in_pre_training() -> None:
    pretrained, network = (n.eval() for n in _networks())
    transfer(pretrained.state_dict(), network)
    data = torch.randn(1, 2, 16, 32, 24)
    for first, second in zip(pretrained.encoder(data), network.encoder(data), strict=True):
        assert torch.equal(first, second)
    for first, second in zip(
        pretrained.vit_encoder.forward_taps(data, taps=3), network.vit_encoder.forward_taps(data, taps=3), strict=True
    ):
        assert torch.equal(first, second)


def test_other_number_of_channels_is_refused_and_nothing_is_loaded() -> None:
    pretrained, network = _networks(channels=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="number of channels"):
        transfer(pretrained.state_dict(), network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_absent_and_foreign_weights_are_refused() -> None:
    pretrained, network = _networks()
    weights = dict(pretrained.state_dict())
    name = next(n for n in weights if n.startswith("encoder."))
    with pytest.raises(ValueError, match=f"{name} is absent"):
        transfer({n: v for n, v in weights.items() if n != name}, network)
    with pytest.raises(ValueError, match=r"other\.weight is not part"):
        transfer({**weights, "other.weight": torch.zeros(1)}, network)


def test_unetr_takes_the_vit_and_nothing_else() -> None:
    pretrained, _ = _networks()
    network = build_unetr(SHAPE, 2, 3, TINY)
    fresh = {name: value.clone() for name, value in network.unetr_decoder.state_dict().items()}
    weights = {**pretrained.state_dict(), "fusion.projections.0.0.weight": torch.zeros(1)}
    result = transfer(weights, network, UNETR_PARTS)
    own = network.state_dict()
    assert {name for name in weights if name.startswith("vit_encoder.")} == set(result.matched)
    assert all(torch.equal(own[name], weights[name]) for name in result.matched)
    assert all(torch.equal(own[f"unetr_decoder.{name}"], value) for name, value in fresh.items())
    assert len(result.missing) == len(fresh) and len(result.unexpected) == len(weights) - len(result.matched)
    with pytest.raises(ValueError, match="vit_encoder.norm.weight is absent"):
        transfer({n: v for n, v in weights.items() if n != "vit_encoder.norm.weight"}, network, UNETR_PARTS)


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


def test_read_checkpoint_refuses_other_files(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint_final.pth"
    for content in ({"network_weights": {}}, {"topomae": {"role": "finetuning"}}):
        torch.save(content, file)
        with pytest.raises(ValueError, match="not a checkpoint of TopoMAEPretrainer"):
            read_checkpoint(file)
    torch.save({"topomae": {"role": "pretraining"}}, file)
    assert read_checkpoint(file) == {"topomae": {"role": "pretraining"}}


def test_another_plan_is_refused_with_both_values() -> None:
    own = {"patch_size": [16, 32, 24], "channels": 1}
    check_same_plan(dict(own), own, Path("c.pth"))
    with pytest.raises(ValueError, match=r"patch_size: checkpoint \[8, 8, 8\], plan \[16, 32, 24\]"):
        check_same_plan({**own, "patch_size": [8, 8, 8]}, own, Path("c.pth"))


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
