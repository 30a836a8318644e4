"""Roles of parameters: what a network declares must be what it has, and a renamed parameter must not pass silently."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from nnunet_topomae.architectures.build import (
    build_copretraining_network,
    build_fusion_network,
    build_unetr,
    build_unetrpp,
)
from nnunet_topomae.architectures.roles import (
    Resampling,
    check_declarations,
    coarse_to_fine_prefixes,
    no_weight_decay,
    part_prefixes,
    resampling_of,
)
from nnunet_topomae.architectures.rule import NetworkShape, derive_network_shape
from nnunet_topomae.config import ArchitectureConfig


def _networks(shape: NetworkShape, architecture: ArchitectureConfig) -> list[nn.Module]:
    return [
        build_copretraining_network(shape, 1, architecture),
        build_fusion_network(shape, 1, 2, architecture, deep_supervision=True),
        build_unetr(shape, 1, 2, architecture),
        build_unetrpp(shape, 1, 2, architecture, deep_supervision=True),
    ]


def test_every_declared_part_exists(four_stages: NetworkShape, architecture: ArchitectureConfig) -> None:
    for network in _networks(four_stages, architecture):
        check_declarations(network)
        for name in ("pretrained_parts", "fresh_parts", "pretraining_parts"):
            part_prefixes(network, getattr(network, name, ()))


def _rename(module: nn.Module, old: str, new: str) -> None:
    value = getattr(module, old)
    delattr(module, old)
    setattr(module, new, value)


@pytest.mark.parametrize(
    ("path", "old"),
    [
        ("encoder.stages.0.embeddings.0", "position"),
        ("encoder.stages.0.blocks.0.attention", "channel_temperature"),
        ("encoder.stages.0.blocks.0.attention", "spatial_temperature"),
        ("vit_decoder", "mask_token"),
    ],
)
def test_a_renamed_parameter_does_not_change_weight_decay_silently(
    four_stages: NetworkShape, architecture: ArchitectureConfig, path: str, old: str
) -> None:
    network = build_copretraining_network(four_stages, 1, architecture)
    assert f"{path}.{old}" in no_weight_decay(network)
    _rename(network.get_submodule(path), old, "renamed")
    with pytest.raises(AttributeError, match=old):
        no_weight_decay(network)


@pytest.mark.parametrize(
    ("path", "old"),
    [
        ("encoder.stages.0.embeddings.0", "projection"),
        ("encoder.stages.0.embeddings.0", "projection_bias"),
        ("encoder", "full_resolution"),
        ("vit_encoder", "patch_embedding"),
        ("decoder", "steps"),
    ],
)
def test_a_renamed_part_that_depends_on_the_plan_is_noticed(
    four_stages: NetworkShape, architecture: ArchitectureConfig, path: str, old: str
) -> None:
    network = build_copretraining_network(four_stages, 1, architecture)
    _rename(network.get_submodule(path), old, "renamed")
    with pytest.raises(AttributeError, match=old):
        check_declarations(network)


def test_weights_that_depend_on_the_plan_say_how(architecture: ArchitectureConfig) -> None:
    """Two plans that differ in everything: a weight of another shape has a rule, and a fitting one."""
    plans = [((8, 32, 48), [[1, 2, 2], [2, 2, 2], [1, 2, 2], [2, 2, 2]], 1), ((32, 48, 64), [[2, 2, 2]] * 4, 3)]
    networks = []
    architecture = replace(architecture, projections=(60, 60, 60, 60))
    for patch, strides, channels in plans:
        shape = derive_network_shape(patch, [[1, 1, 1], *strides], architecture)
        with torch.device("meta"):
            networks.append(build_fusion_network(shape, channels, 2, architecture, deep_supervision=False))
    first, second = (network.state_dict() for network in networks)
    fresh = part_prefixes(networks[0], networks[0].fresh_parts)
    different = {
        n for n in first.keys() & second.keys() if first[n].shape != second[n].shape and not n.startswith(fresh)
    }
    rules = {name: resampling_of(networks[0], name) for name in different}
    assert None not in rules.values()
    kinds = {
        "position": Resampling.WRITES_FIELD,
        "projection": Resampling.READS_FIELD_ROWS,
        "projection_bias": Resampling.ROWS,
        "vit_encoder.patch_embedding.weight": Resampling.TOKEN_EMBEDDING,
        "encoder.downsampling.0.0.weight": Resampling.READS_FIELD,
        "decoder.steps.0.upsampling.weight": Resampling.WRITES_FIELD,
    }
    for end, rule in kinds.items():
        found = {kind for name, kind in rules.items() if name.endswith(end)}
        assert found <= {rule}, end
    assert {rule for name, rule in rules.items() if "full_resolution" in name} == {Resampling.CHANNELS}
    assert set(rules.values()) == set(Resampling)
    assert resampling_of(networks[0], "vit_encoder.norm.weight") is None
    assert coarse_to_fine_prefixes(networks[0]) == ("decoder.steps.",)
