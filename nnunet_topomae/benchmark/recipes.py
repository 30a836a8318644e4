"""What a benchmark compares: recipes, as data. Standard library only, so that `status` is quick."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nnunet_topomae.nnunet.names import (
    FUSION_TRAINER,
    MONAI_TRAINER,
    PLANNER,
    PLANS,
    PRETRAINED_NNUNET_TRAINER,
    PRETRAINER,
    SEEDED_NNUNET_TRAINER,
    UNETR_TRAINER,
    UNETRPP_TRAINER,
    VECTORPOSE_PRETRAINER,
)

PLANNERS = {
    "nnUNetPlans": "ExperimentPlanner",
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    PLANS: PLANNER,
}


@dataclass(frozen=True)
class Recipe:
    """A way to a segmentation model.

    Attributes:
        name: as in the benchmark's file.
        title: for tables.
        trainer: supervised trainer.
        plans: base plans; the benchmark's settings and `settings` make a variant of them.
        pretrainer: trainer of the pre-training, None without one.
        settings: values of the plan's `topomae` section by key, such as `pretraining.lambda2`.
        paper_row: row of the paper's tables to compare with, if any.
        adds_pretraining: without pre-training, train for as many steps more: a fair control of pre-trained recipes.
        same_time_as: a pre-trained recipe of the same benchmark; train for as long as its pre-training and training
            take.
        same_macs_as: likewise; train for as many multiply-adds.
    """

    name: str
    title: str
    trainer: str
    plans: str = PLANS
    pretrainer: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    paper_row: str | None = None
    adds_pretraining: bool = False
    same_time_as: str | None = None
    same_macs_as: str | None = None

    @property
    def equal_to(self) -> str | None:
        """The recipe whose time or multiply-adds decide how long this one trains; None where its settings do."""
        return self.same_time_as or self.same_macs_as


_FUSION: dict[str, Any] = {"trainer": FUSION_TRAINER, "pretrainer": PRETRAINER}
_RECONSTRUCTION = {"pretraining.lambda2": 0.0, "pretraining.lambda3": 0.0, "topology.enabled": False}
# UNETR++ has no weight in the loss, so its forward pass is left out.
_VIT_ONLY = {"pretraining.lambda1": 0.0, "pretraining.lambda3": 0.0}
_VIT_INTO_FUSION = {**_VIT_ONLY, "finetuning.transfer_parts": "vit"}
# nnU-Net's own network, as nnU-Net plans it, in UNETR++'s place.
_NNUNET: dict[str, Any] = {"plans": "nnUNetPlans", "pretrainer": PRETRAINER}
_OWN_PARTNER = {"architecture.partner": "plan"}

# UNETR++ alone, as in the recipe `unetrpp`, which is their control.
_VECTORPOSE: dict[str, Any] = {"trainer": FUSION_TRAINER, "pretrainer": VECTORPOSE_PRETRAINER}
_UNETRPP_ALONE = {"architecture.vit": "none", "finetuning.pretrainer": VECTORPOSE_PRETRAINER}

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("nnunet", "nnU-Net", SEEDED_NNUNET_TRAINER, "nnUNetPlans", paper_row="nnU-Net"),
        Recipe("nnunet-resenc", "nnU-Net ResEnc M", SEEDED_NNUNET_TRAINER, "nnUNetResEncUNetMPlans"),
        Recipe(
            "nnunet-2x",
            "nnU-Net, with the steps of pre-training too",
            SEEDED_NNUNET_TRAINER,
            "nnUNetPlans",
            adds_pretraining=True,
        ),
        Recipe(
            "nnunet-pretrained",
            "nnU-Net, pre-trained",
            PRETRAINED_NNUNET_TRAINER,
            **_NNUNET,
            settings=_OWN_PARTNER,
        ),
        Recipe(
            "nnunet-vitfree",
            "nnU-Net, pre-trained without a ViT",
            PRETRAINED_NNUNET_TRAINER,
            **_NNUNET,
            settings={**_OWN_PARTNER, "architecture.vit": "none"},
        ),
        Recipe("fusion-nnunet", "fusion of ViT and nnU-Net", FUSION_TRAINER, **_NNUNET, settings=_OWN_PARTNER),
        Recipe("unetrpp", "UNETR++ from scratch", UNETRPP_TRAINER, paper_row="UNETR++"),
        Recipe("unetrpp-2x", "UNETR++, with the steps of pre-training too", UNETRPP_TRAINER, adds_pretraining=True),
        Recipe("unetr", "UNETR", MONAI_TRAINER, settings={"finetuning.network": "unetr"}, paper_row="UNETR"),
        Recipe(
            "unetr-mae",
            "UNETR, masked reconstruction",
            UNETR_TRAINER,
            pretrainer=PRETRAINER,
            settings={**_VIT_ONLY, **_RECONSTRUCTION},
            paper_row="UNETR + MAE",
        ),
        Recipe(
            "swinunetr",
            "Swin UNETR",
            MONAI_TRAINER,
            settings={"finetuning.network": "swin_unetr"},
            paper_row="Swin UNETR",
        ),
        Recipe(
            "attention-unet",
            "Attention U-Net",
            MONAI_TRAINER,
            settings={"finetuning.network": "attention_unet"},
            paper_row="Attention U-Net",
        ),
        Recipe(
            "fusion-scratch",
            "fusion network from scratch",
            FUSION_TRAINER,
            settings={"finetuning.pretrained": "scratch"},
        ),
        Recipe(
            "fusion-scratch-2x",
            "fusion network from scratch, with the steps of pre-training too",
            FUSION_TRAINER,
            settings={"finetuning.pretrained": "scratch"},
            adds_pretraining=True,
        ),
        Recipe(
            "+vit",
            "fusion, pre-trained ViT",
            **_FUSION,
            settings={**_VIT_INTO_FUSION, **_RECONSTRUCTION},
            paper_row="+ pre-trained ViT",
        ),
        Recipe(
            "+spatial",
            "fusion, ViT + spatial loss",
            **_FUSION,
            settings={**_VIT_INTO_FUSION, "topology.enabled": False},
            paper_row="+ spatial",
        ),
        Recipe(
            "+topological",
            "fusion, ViT + spatial + topological loss",
            **_FUSION,
            settings=_VIT_INTO_FUSION,
            paper_row="+ topological",
        ),
        Recipe("full", "fusion, all losses", **_FUSION, paper_row="full"),
        Recipe(
            "co-reconstruction", "fusion, co-pre-training, reconstruction only", **_FUSION, settings=_RECONSTRUCTION
        ),
        Recipe(
            "co-spatial",
            "fusion, co-pre-training, + spatial loss",
            **_FUSION,
            settings={"pretraining.lambda3": 0.0, "topology.enabled": False},
        ),
        Recipe(
            "co-topological",
            "fusion, co-pre-training, + topological loss",
            **_FUSION,
            settings={"pretraining.lambda3": 0.0, "pretraining.spatial": "none"},
        ),
        Recipe(
            "topomae-vectors",
            "fusion, all losses, vectors in place of key points",
            **_FUSION,
            settings={"pretraining.spatial": "vectors"},
        ),
        Recipe("vectorpose", "UNETR++, VectorPOSE", **_VECTORPOSE, settings=_UNETRPP_ALONE),
        Recipe(
            "vectorpose-vp",
            "UNETR++, VectorPOSE's vectors",
            **_VECTORPOSE,
            settings={**_UNETRPP_ALONE, "vectorpose.tasks": "vectors"},
        ),
        Recipe(
            "vectorpose-bfr",
            "UNETR++, VectorPOSE's boundaries",
            **_VECTORPOSE,
            settings={**_UNETRPP_ALONE, "vectorpose.tasks": "boundary"},
        ),
    )
}

# What else the paper compares with, and why no recipe runs it here.
NOT_AVAILABLE = {
    "nnformer": "no maintained package: the research code pins torch 1.8 and a fork of nnU-Net v1",
    "transunet": "no maintained package; a 2D network with ImageNet weights",
}


# Endings of the controls of a pre-trained recipe: the same network and training without pre-training. What the key of
# the values names decides how long they train.
_CONTROLS = {
    "-scratch": ("", None),
    "-scratch-2x": (", with the steps of pre-training too", "adds_pretraining"),
    "-scratch-time": (", for as long as with pre-training", "same_time_as"),
    "-scratch-macs": (", with as many multiply-adds as with pre-training", "same_macs_as"),
}
# The same for stock nnU-Net.
_NNUNET_TIME = "-nnunet-time"


def find_recipe(name: str) -> Recipe:
    """A recipe that ships with the package, or a control of one: its name with `-scratch`, `-scratch-2x` or so.

    Raises:
        ValueError: there is none of that name.
    """
    if name in RECIPES:
        return RECIPES[name]
    if (control := _control(name)) is not None:
        return control
    if name in NOT_AVAILABLE:
        raise ValueError(f"recipe {name} is not available: {NOT_AVAILABLE[name]}")
    raise ValueError(f"no recipe {name!r}; there are {', '.join(RECIPES)}, and your own as [recipe.NAME]")


def _control(name: str) -> Recipe | None:
    """The control of that name, None if it belongs to no pre-trained recipe."""
    for ending in (*_CONTROLS, _NNUNET_TIME):
        recipe = RECIPES.get(name.removesuffix(ending)) if name.endswith(ending) else None
        if recipe is None or recipe.pretrainer is None:
            continue
        common: dict[str, Any] = {"name": name, "paper_row": None}
        if ending == _NNUNET_TIME:
            title = f"nnU-Net, for as long as “{recipe.title}”"
            return replace(RECIPES["nnunet"], title=title, same_time_as=recipe.name, **common)
        title, key = _CONTROLS[ending]
        if key is not None:
            common[key] = True if key == "adds_pretraining" else recipe.name
        settings = {**recipe.settings, "finetuning.pretrained": "scratch"}
        return replace(
            recipe, title=f"{recipe.title}: from scratch{title}", pretrainer=None, settings=settings, **common
        )
    return None
