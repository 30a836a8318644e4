"""What the recipes of the ladder train, by the weights of the losses and by what is transferred."""

from itertools import pairwise
from typing import Any

import pytest

from nnunet_topomae.benchmark.recipes import find_recipe
from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.losses.copretraining import CoPretrainingLoss

TERMS = ("mse", "topo", "spa")
BOTH = {f"{term}_{network}" for term in TERMS for network in ("vit", "unetrpp")} | {"spa_consis", "rec_consis"}


def _config(name: str) -> TopoMAEConfig:
    sections: dict[str, Any] = {}
    for key, value in find_recipe(name).settings.items():
        section, _, last = key.partition(".")
        sections.setdefault(section, {})[last] = value
    return TopoMAEConfig.from_configuration({"topomae": sections})


@pytest.mark.parametrize(
    ("name", "trained", "transferred", "row"),
    [
        ("+vit", {"mse_vit"}, "vit", "+ pre-trained ViT"),
        ("+spatial", {"mse_vit", "spa_vit"}, "vit", "+ spatial"),
        ("+topological", {"mse_vit", "spa_vit", "topo_vit"}, "vit", "+ topological"),
        ("full", BOTH, "both", "full"),
        ("unetr-mae", {"mse_vit"}, "both", "UNETR + MAE"),
        ("co-reconstruction", {"mse_vit", "mse_partner"}, "both", None),
        ("co-spatial", {"mse_vit", "mse_partner", "spa_vit", "spa_partner"}, "both", None),
        ("co-topological", {"mse_vit", "mse_partner", "topo_vit", "topo_partner"}, "both", None),
    ],
)
def test_what_a_recipe_trains_and_transfers(name: str, trained: set[str], transferred: str, row: str | None) -> None:
    config = _config(name)
    weights = CoPretrainingLoss(config.pretraining, config.topology).weights
    # A topological term without weight is not even computed.
    assert {term for term, weight in weights.items() if weight > 0} == trained
    assert config.topology.enabled == any(term.startswith("topo") for term in trained)
    assert config.finetuning.transfer_parts == transferred
    assert find_recipe(name).paper_row == row


def test_the_ladder_is_cumulative() -> None:
    steps = []
    for name in ("+vit", "+spatial", "+topological", "full"):
        config = _config(name)
        weights = CoPretrainingLoss(config.pretraining, config.topology).weights
        steps.append({term for term, weight in weights.items() if weight > 0})
    assert all(before < after for before, after in pairwise(steps))
