import inspect
import re
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_topomae.architectures.build import build_copretraining_network, build_fusion_network
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.training.checkpoints import ignore_former_parts, save_atomically, training_state

TINY = ArchitectureConfig(vit="tiny", dims=(8, 16, 32, 64), depth=1)
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
SHAPE = derive_network_shape((16, 32, 24), STRIDES, TINY)


def _networks(channels: int = 2) -> tuple[nn.Module, nn.Module]:
    pretrained = build_copretraining_network(SHAPE, 2, TINY)
    return pretrained, build_fusion_network(SHAPE, channels, 3, TINY, deep_supervision=True)


def test_save_replaces_the_old_file_only_when_complete(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint_latest.pth"
    save_atomically({"a": torch.ones(2)}, file)
    with pytest.raises(Exception, match="pickle|Pickl"):
        save_atomically({"a": torch.zeros(2), "b": lambda: None}, file)
    assert torch.load(file)["a"].tolist() == [1.0, 1.0]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_latest.pth"]


def test_pre_training_resumes_from_a_checkpoint_with_fusion_layers() -> None:
    pretrained, network = _networks()
    state = {**pretrained.state_dict(), **{n: v for n, v in network.state_dict().items() if n.startswith("fusion.")}}
    again, _ = _networks()
    with pytest.raises(RuntimeError, match=r"fusion\."):
        again.load_state_dict(dict(state))
    ignore_former_parts(again)
    again.load_state_dict(dict(state))
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


def test_training_state_has_exactly_the_stock_entries() -> None:
    """The entries are those that nnU-Net's own save_checkpoint writes; read from its source."""
    source = inspect.getsource(nnUNetTrainer.save_checkpoint)
    stock = set(re.findall(r"^\s+'(\w+)':", source, flags=re.MULTILINE))
    ours = set(re.findall(r'^\s+"(\w+)":', inspect.getsource(training_state), flags=re.MULTILINE))
    assert ours == stock and "network_weights" in stock
