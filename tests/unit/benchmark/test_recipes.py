"""What the recipes of the ladder train, by the weights of the losses and by what is transferred."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nnunet_topomae.benchmark.jobs import recipe_settings
from nnunet_topomae.benchmark.recipes import RECIPES, find_recipe
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.losses.copretraining import CoPretrainingLoss

TERMS = ("mse", "topo", "spa")
BOTH = {f"{term}_{network}" for term in TERMS for network in ("vit", "partner")} | {"spa_consis", "rec_consis"}


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
        ("topomae-vectors", {term.replace("spa_", "vec_") for term in BOTH}, "both", None),
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


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("vectorpose", {"clean_partner", "edge_partner", "vec_partner"}),
        ("vectorpose-vp", {"vec_partner"}),
        ("vectorpose-bfr", {"clean_partner", "edge_partner"}),
    ],
)
def test_vectorpose_trains_unetrpp_alone_with_equal_weights(name: str, trained: set[str]) -> None:
    recipe, written = find_recipe(name), _config(name)
    config = written.for_vectorpose()
    weights = CoPretrainingLoss(config.pretraining, config.topology, config.architecture.has_vit).weights
    assert {term for term, weight in weights.items() if weight > 0} == trained
    assert len({round(weights[term], 6) for term in trained}) == 1
    assert not written.architecture.has_vit and recipe.pretrainer == written.finetuning.pretrainer


def test_the_ladder_is_cumulative() -> None:
    steps = []
    for name in ("+vit", "+spatial", "+topological", "full"):
        config = _config(name)
        weights = CoPretrainingLoss(config.pretraining, config.topology).weights
        steps.append({term for term, weight in weights.items() if weight > 0})
    assert all(before < after for before, after in pairwise(steps))


def test_recipes_of_nnunets_own_network() -> None:
    for name in ("nnunet-pretrained", "nnunet-vitfree", "fusion-nnunet"):
        recipe, config = find_recipe(name), _config(name)
        assert recipe.plans == "nnUNetPlans" and config.architecture.partner == "plan"
        assert recipe.pretrainer == "TopoMAEPretrainer" and recipe.paper_row is None
    assert not _config("nnunet-vitfree").architecture.has_vit


@pytest.mark.parametrize("name", ["nnunet", "unetrpp", "fusion-scratch"])
def test_a_control_trains_for_the_steps_of_pre_training_too(name: str) -> None:
    settings = {
        "pretraining.epochs": 6,
        "pretraining.iterations_per_epoch": 20,
        "finetuning.epochs": 5,
        "finetuning.iterations_per_epoch": 40,
    }
    chosen = (find_recipe(name), find_recipe(f"{name}-2x"))
    spec = BenchmarkSpec("b", Path("b"), (1,), chosen, (name,), settings=settings)
    assert recipe_settings(spec, find_recipe(name))["finetuning.epochs"] == 5
    assert recipe_settings(spec, find_recipe(f"{name}-2x"))["finetuning.epochs"] == 5 + 3
    assert find_recipe(f"{name}-2x").pretrainer is None
    defaults = BenchmarkSpec("b", Path("b"), (1,), chosen, (name,))
    assert recipe_settings(defaults, find_recipe(f"{name}-2x"))["finetuning.epochs"] == 1200


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.pretrainer])
def test_every_pre_trained_recipe_has_controls_from_scratch(name: str) -> None:
    """The same trainer, plans and network; as many steps as fine-tuning, or as much as both trainings."""
    recipe = find_recipe(name)
    for ending, adds, time, macs in (
        ("", False, None, None),
        ("-2x", True, None, None),
        ("-time", False, name, None),
        ("-macs", False, None, name),
    ):
        control, config = find_recipe(f"{name}-scratch{ending}"), _config(f"{name}-scratch{ending}")
        assert (control.trainer, control.plans) == (recipe.trainer, recipe.plans)
        assert config.architecture == _config(name).architecture and config.finetuning.pretrained == "scratch"
        assert control.pretrainer is None and control.paper_row is None
        assert (control.adds_pretraining, control.same_time_as, control.same_macs_as) == (adds, time, macs)
        assert control.title.startswith(f"{recipe.title}: from scratch")
    control = find_recipe(f"{name}-nnunet-time")
    assert (control.trainer, control.plans, control.settings) == ("SeededNNUNetTrainer", "nnUNetPlans", {})
    assert (control.same_time_as, control.pretrainer, control.paper_row) == (name, None, None)


def test_no_two_recipes_have_the_same_title() -> None:
    endings = ("", "-scratch", "-scratch-2x", "-scratch-time", "-scratch-macs", "-nnunet-time")
    names = {name + ending for name, recipe in RECIPES.items() for ending in endings if recipe.pretrainer or not ending}
    assert len({find_recipe(name).title for name in names}) == len(names)


@pytest.mark.parametrize(
    "name",
    ["nnunet-scratch", "unetrpp-scratch-time", "unetrpp-nnunet-time", "other-scratch", "-scratch", "full-scratch-3x"],
)
def test_only_pre_trained_recipes_have_controls(name: str) -> None:
    with pytest.raises(ValueError, match=f"no recipe '{name}'"):
        find_recipe(name)
