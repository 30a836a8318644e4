"""torch.compile, in a process of its own: the runtime type checks of the test session cannot be compiled."""

import subprocess
import sys

import pytest

PROGRAM = """
import torch
from nnunet_topomae.architectures.build import build_copretraining_network, build_fusion_network
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.masking import crop_mask, random_token_mask

architecture = ArchitectureConfig(vit="tiny", dims=(8, 12, 16, 20), depth=1, heads=2, feature_size=4)
shape = derive_network_shape((8, 32, 48), [[1, 2, 2], [2, 2, 2], [1, 2, 2], [2, 2, 2]], architecture)
data = torch.randn(1, 1, *shape.patch_size)
with torch.no_grad():
    network = build_fusion_network(shape, 1, 3, architecture, deep_supervision=False).eval()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(data), network(data))
    network = build_copretraining_network(shape, 1, architecture).eval()
    tokens = random_token_mask(1, shape.token_grid, 0.5, torch.Generator().manual_seed(0))
    mask = crop_mask(tokens, shape.token_size)
    for a, b in zip(torch.compile(network, backend="aot_eager")(data, mask), network(data, mask), strict=True):
        torch.testing.assert_close(tuple(a), tuple(b))
print("compiled")
"""


@pytest.mark.slow
def test_networks_compile() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=600, check=False)
    assert result.stdout.strip() == "compiled", result.stderr
