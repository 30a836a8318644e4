import json
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunet_topomae.architectures.build import build_fusion_network
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.benchmark.stages import count_parameters, write_splits
from nnunet_topomae.config import ArchitectureConfig


def _nnunet(norm: type[nn.Module] = nn.InstanceNorm3d) -> nn.Module:
    return PlainConvUNet(
        1, 3, [4, 8, 16], nn.Conv3d, 3, [1, 2, 2], 2, 2, 2, True, norm, {"affine": True}, deep_supervision=True
    )


def _residual() -> nn.Module:
    norm = nn.InstanceNorm3d
    return ResidualEncoderUNet(1, 3, [4, 8, 16], nn.Conv3d, 3, [1, 2, 2], [1, 2, 2], 2, [1, 1], True, norm)


def _fusion() -> nn.Module:
    architecture = ArchitectureConfig(vit="tiny", dims=(8, 8, 16, 16), depth=1)
    shape = derive_network_shape((16, 24, 32), [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]], architecture)
    return build_fusion_network(shape, 1, 2, architecture, deep_supervision=True)


@pytest.mark.parametrize(
    "network",
    [_nnunet(), _nnunet(nn.BatchNorm3d), _residual(), _fusion()],
    ids=["plain", "batch", "residual", "fusion"],
)
def test_a_parameter_with_several_names_counts_once(network: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": network.state_dict()}, file)
    assert count_parameters(file) == sum(parameter.numel() for parameter in network.parameters())


def test_folds_that_a_data_set_lacks_are_nnunets_own(tmp_path: Path) -> None:
    (tmp_path / "gt_segmentations").mkdir()
    cases = [f"case_{number}" for number in range(7)]
    for case in cases:
        (tmp_path / "gt_segmentations" / f"{case}.nii.gz").touch()
    (tmp_path / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
    write_splits(tmp_path)
    splits = json.loads((tmp_path / "splits_final.json").read_text())
    assert sorted(case for fold in splits for case in fold["val"]) == cases
    assert all(sorted(fold["train"] + fold["val"]) == cases for fold in splits)
    # A data set's own folds stay.
    (tmp_path / "splits_final.json").write_text("[]")
    write_splits(tmp_path)
    assert (tmp_path / "splits_final.json").read_text() == "[]"


def test_nnunets_names_are_aliases() -> None:
    """Otherwise the test above would not show anything."""
    network = _nnunet()
    listed = sum(value.numel() for value in network.state_dict().values())
    assert listed > 2 * sum(parameter.numel() for parameter in network.parameters())
