import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from nnunet_topomae.architectures.build import build_copretraining_network, build_fusion_network, build_unetr
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.training.transfer import Parts, Transfer, transfer, transferred_parts, without_aliases

TINY = ArchitectureConfig(vit="tiny", dims=(8, 16, 32, 64), depth=1)
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
SHAPE = derive_network_shape((16, 32, 24), STRIDES, TINY)


def _networks(channels: int = 2) -> tuple[nn.Module, nn.Module]:
    pretrained = build_copretraining_network(SHAPE, 2, TINY)
    return pretrained, build_fusion_network(SHAPE, channels, 3, TINY, deep_supervision=True)


def _both(network: nn.Module) -> Parts:
    return transferred_parts(network, "both")


def test_transfer_counts_every_weight_once() -> None:
    pretrained, network = _networks()
    fresh = {n: v.clone() for n, v in network.state_dict().items() if n.startswith(("fusion.", "decoder.seg_layers."))}
    weights = pretrained.state_dict()
    result = transfer(weights, network, _both(network))
    own = network.state_dict()
    once = set(without_aliases(own))
    assert set(result.matched) | set(result.missing) == once and not set(result.matched) & set(result.missing)
    assert set(result.matched) | set(result.unexpected) == set(without_aliases(weights))
    assert set(result.missing) == once & set(fresh)
    assert all(torch.equal(own[name], weights[name]) for name in result.matched)
    assert all(torch.equal(own[name], value) for name, value in fresh.items())
    assert f"{len(result.matched)} weights matched" in str(result)


def test_after_transfer_the_encoders_compute_what_they_computed_in_pre_training() -> None:
    pretrained, network = (n.eval() for n in _networks())
    transfer(pretrained.state_dict(), network, _both(network))
    data = torch.randn(1, 2, 16, 32, 24)
    for first, second in zip(pretrained.encoder(data), network.encoder(data), strict=True):
        assert torch.equal(first, second)
    for first, second in zip(
        pretrained.vit_encoder.forward_taps(data, taps=3), network.vit_encoder.forward_taps(data, taps=3), strict=True
    ):
        assert torch.equal(first, second)


def test_a_decoder_that_no_loss_has_trained_is_not_transferred() -> None:
    pretrained, network = _networks()
    own = without_aliases(network.state_dict())
    parts = ("decoder.", "encoder.full_resolution.")  # nothing else reads the second one
    decoder = {name: value.clone() for name, value in own.items() if name.startswith(parts)}
    result = transfer(pretrained.state_dict(), network, transferred_parts(network, "both", takes_decoder=False))
    assert decoder and decoder.keys() <= set(result.missing)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in decoder.items())
    assert {name for name in result.matched if name.startswith("encoder.")}


def test_other_number_of_channels_is_refused_and_nothing_is_loaded() -> None:
    pretrained, network = _networks(channels=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="number of channels"):
        transfer(pretrained.state_dict(), network, _both(network))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_absent_and_foreign_weights_are_refused() -> None:
    pretrained, network = _networks()
    weights = dict(pretrained.state_dict())
    name = next(n for n in weights if n.startswith("encoder."))
    with pytest.raises(ValueError, match=f"{name} is absent"):
        transfer({n: v for n, v in weights.items() if n != name}, network, _both(network))
    with pytest.raises(ValueError, match=r"other\.weight is not part"):
        transfer({**weights, "other.weight": torch.zeros(1)}, network, _both(network))


@pytest.mark.parametrize(("which", "prefix"), [("vit", "vit_encoder."), ("partner", "encoder.")])
def test_refusals_stay_strict_for_what_is_transferred(which: str, prefix: str) -> None:
    pretrained, network = _networks()
    weights = dict(pretrained.state_dict())
    name = next(n for n in weights if n.startswith(prefix))
    without = {n: v for n, v in weights.items() if n != name}
    with pytest.raises(ValueError, match=f"{name} is absent"):
        transfer(without, network, transferred_parts(network, which))
    with pytest.raises(ValueError, match=f"{name} is .*, needed is"):
        transfer({**weights, name: torch.zeros(1)}, network, transferred_parts(network, which))
    other = "vit" if which == "partner" else "partner"
    assert name in transfer(without, network, transferred_parts(network, other)).missing


def test_counts_are_written_with_the_source(tmp_path: Path) -> None:
    result = Transfer(["a", "b", "c"], ["d"], ["e", "f"], {"b": "(2,) -> (3,)"})
    result.write(tmp_path / "transfer.json", {"file": "x.pth"})
    assert json.loads((tmp_path / "transfer.json").read_text()) == {
        "source": {"file": "x.pth"},
        "counts": {"matched": 3, "resampled": 1, "missing": 1, "unexpected": 2},
        "weights": {"a": "copied", "b": "resampled (2,) -> (3,)", "c": "copied", "d": "fresh"},
        "unexpected": ["e", "f"],
    }


def test_unetr_takes_the_vit_and_nothing_else() -> None:
    pretrained, _ = _networks()
    network = build_unetr(SHAPE, 2, 3, TINY)
    fresh = deepcopy(network.unetr_decoder.state_dict())
    weights = {**pretrained.state_dict(), "fusion.projections.0.0.weight": torch.zeros(1)}
    result = transfer(weights, network, _both(network))
    own = network.state_dict()
    assert {name for name in weights if name.startswith("vit_encoder.")} == set(result.matched)
    assert all(torch.equal(own[name], weights[name]) for name in result.matched)
    assert all(torch.equal(own[f"unetr_decoder.{name}"], value) for name, value in fresh.items())
    assert len(result.missing) == len(without_aliases(fresh))
    assert len(result.unexpected) == len(without_aliases(weights)) - len(result.matched)
    with pytest.raises(ValueError, match="vit_encoder.norm.weight is absent"):
        transfer({n: v for n, v in weights.items() if n != "vit_encoder.norm.weight"}, network, _both(network))


def test_parts_of_every_choice() -> None:
    pretraining = {"vit_decoder.", "vit_key_points.", "key_points.", "vit_vectors.", "vectors.", "masking.", "fusion."}
    pretrained, network = _networks()
    both, vit, partner = (transferred_parts(network, choice) for choice in ("both", "vit", "partner"))
    assert (both.taken, vit.taken, partner.taken) == (("vit", "partner"), ("vit",), ("partner",))
    assert set(both.fresh) == {"fusion.", "decoder.seg_layers."} and set(both.left_out) == pretraining
    assert set(vit.fresh) == {*both.fresh, "encoder.", "decoder."}
    assert set(vit.left_out) == {*pretraining, "encoder.", "decoder."}
    assert set(partner.fresh) == {*both.fresh, "vit_encoder."}
    assert set(partner.left_out) == {*pretraining, "vit_encoder."}
    unetr = build_unetr(SHAPE, 2, 3, TINY)
    assert _both(unetr) == transferred_parts(unetr, "vit")
    assert _both(unetr).fresh == ("unetr_decoder.",) and set(_both(unetr).left_out) == set(vit.left_out)
    assert {name.split(".")[0] for name, _ in pretrained.named_parameters()} == {
        part for parts in (*pretrained.transferred_parts.values(), pretrained.pretraining_parts) for part in parts
    }


def test_a_part_that_was_renamed_is_an_error() -> None:
    network = build_unetr(SHAPE, 2, 3, TINY)
    network.decoder = network.unetr_decoder
    del network.unetr_decoder
    with pytest.raises(AttributeError, match="unetr_decoder"):
        _both(network)
