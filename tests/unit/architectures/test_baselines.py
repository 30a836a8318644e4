"""MONAI's networks on the patches of plans."""

import sys

import pytest
import torch

from nnunet_topomae.architectures.baselines import BaselineName, PaddedNetwork, build_baseline
from nnunet_topomae.architectures.summary import count_macs, count_parameters

# Sizes published for the networks: UNETR 92.5 M (with MONAI's head), Swin UNETR 62.2 M.
NETWORKS: list[tuple[BaselineName, float | None]] = [
    ("unetr", 92.5e6),
    ("swin_unetr", 62.2e6),
    ("attention_unet", None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameters"), NETWORKS)
def test_any_patch_gives_its_own_size_and_the_published_weights(name: BaselineName, parameters: float | None) -> None:
    pytest.importorskip("monai")
    patch = (12, 40, 56)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_baseline(name, patch, 2, 3).eval()
    with torch.no_grad():
        logits = network(torch.zeros(1, 2, *patch))
    assert logits.shape == (1, 3, *patch)
    assert torch.isfinite(logits).all()
    if parameters is not None:
        whole = build_baseline(name, (96, 96, 96), 1, 14)
        assert count_parameters(whole) == pytest.approx(parameters, rel=0.02)
    assert count_macs(network, (2, *patch)) > 0


def test_padding_is_cut_off_again() -> None:
    seen = []

    class Identity(torch.nn.Module):
        def forward(self, data: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(data.shape[2:]))
            return data

    data = torch.rand(2, 1, 5, 16, 17)
    assert torch.equal(PaddedNetwork(Identity(), 8)(data), data)
    assert seen == [(8, 16, 24)]


def test_without_monai_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.setitem(sys.modules, "monai.networks.nets.attentionunet", None)
    with pytest.raises(RuntimeError, match=r"pip install nnunet-topomae\[baselines\]"):
        build_baseline("unetr", (16, 16, 16), 1, 2)
