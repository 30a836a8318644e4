"""Two steps of a network that is spread over processes: every parameter that asks for a gradient gets one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import distributed, nn

from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.geometry import CropLocation
from nnunet_topomae.losses.copretraining import CoPretrainingLoss
from nnunet_topomae.nnunet.plan import Plan, partner_network
from nnunet_topomae.training.copretraining import CoPretrainingStep
from nnunet_topomae.training.networks import pretraining_network
from nnunet_topomae.vectors import vector_targets

PATCH = (8, 16, 24)
CLEAN: dict[str, Any] = {"target": "boundary", "shuffle": 0.0, "bezier": 0.0, "paint": 0.0}
# Of nnU-Net's network: a reconstruction has one output, at full resolution.
UNUSED_HEADS = {"decoder.seg_layers.0", "decoder.seg_layers.1"}
ENCODERS_ALONE: dict[str, Any] = {"lambda2": 0.5, "lambda3": 0.0, "spatial": "vectors"}


@pytest.fixture
def _alone(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize(
    ("partner", "vectorpose", "pretraining", "frozen"),
    [
        ("unetrpp", None, {}, set()),
        ("unetrpp", "both", {}, set()),
        ("unetrpp", "vectors", {}, {"decoder", "encoder.full_resolution"}),
        (
            "unetrpp",
            None,
            {**ENCODERS_ALONE, **CLEAN, "lambda1": 0.0},
            {"vit_decoder", "encoder", "decoder", "vectors"},
        ),
        ("unetrpp", None, ENCODERS_ALONE, {"vit_decoder", "decoder", "encoder.full_resolution"}),
        ("plan", "both", {}, UNUSED_HEADS),
        ("plan", "vectors", {}, {"decoder"}),
        ("plan", None, ENCODERS_ALONE, {"vit_decoder", "decoder"}),
        ("plan", None, {"partner_masking": "sparse"}, UNUSED_HEADS),
        ("plan", None, {**ENCODERS_ALONE, "partner_masking": "sparse"}, {"vit_decoder", "decoder"}),
    ],
)
def test_ddp_waits_for_no_gradient(
    partner: str, vectorpose: str | None, pretraining: dict[str, Any], frozen: set[str], tiny_plans: Any
) -> None:
    section: dict[str, Any] = {
        "architecture": {"partner": partner, "vit": "tiny", "dims": [8, 8, 16, 16], "depth": 1},
        "pretraining": pretraining,
        "topology": {"enabled": False},
        "vectorpose": {"tasks": vectorpose or "both"},
    }
    config = TopoMAEConfig.from_configuration({"topomae": section})
    config = config if vectorpose is None else config.for_vectorpose()
    configuration = ConfigurationManager(tiny_plans("Dataset007_Tiny")["configurations"]["3d_fullres"])
    planned = partner_network(configuration, config)
    features = None if planned is None else planned.features
    shape = derive_network_shape(PATCH, [[1, 1, 1], *[[2, 2, 2]] * 3], config.architecture, features)
    plan = Plan(config, shape, (1.0, 1.0, 1.0), {}, planned)
    network = pretraining_network(plan, 1)
    loss = CoPretrainingLoss(config.pretraining, config.topology, config.architecture.has_vit)
    step = CoPretrainingStep(nn.parallel.DistributedDataParallel(network), loss, None, plan, torch.device("cpu"))
    data, place = torch.randn(2, 1, *PATCH), CropLocation((0, 1, 0), (8, 17, 24), (9, 20, 30))
    targets = torch.from_numpy(vector_targets(place, plan.vector_frame())).expand(2, 9, 4)
    batch = {"data": data, "key_points": torch.zeros(2, 9, 3), "vectors": targets}
    if vectorpose == "both":
        batch |= {"inputs": data, "boundaries": torch.zeros_like(data)}
    for _ in range(2):  # DDP finds in the second step what the first one has left out
        step(batch, [1, 2], 0.0)["total"].backward()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert trained and all(parameter.grad is not None for parameter in trained.values())
    for name in network.branches:  # each encoder learns, whatever of it has another name elsewhere
        part = {"vit": "vit_encoder.", "partner": "encoder."}[name]
        assert any(p.grad.any() for n, p in trained.items() if n.startswith(part))
    left_out = {name for name, _ in network.named_parameters()} - trained.keys()
    assert left_out == {
        name for name, _ in network.named_parameters() if name.startswith(tuple(f"{f}." for f in frozen))
    }
