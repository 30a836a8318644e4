"""Which settings of a benchmark a job reads: the others are no part of it. Standard library only."""

from collections.abc import Mapping
from typing import Any

from nnunet_topomae.benchmark.recipes import Recipe
from nnunet_topomae.config import FROM_SCRATCH
from nnunet_topomae.nnunet.names import (
    FUSION_TRAINER,
    MONAI_TRAINER,
    PRETRAINED_NNUNET_TRAINER,
    PRETRAINER,
    SEEDED_NNUNET_TRAINER,
    UNETR_TRAINER,
    UNETRPP_TRAINER,
)

# Settings that pre-training does not see, and those that only pre-training sees.
SUPERVISED = "finetuning."
UNSUPERVISED = ("pretraining.", "topology.", "vectorpose.")
# A training without pre-training sees it too: it refuses folds with a patient on both sides.
PATIENTS = "pretraining.patients"
PRETRAINED = "finetuning.pretrained"

_VECTORPOSE = "vectorpose."
_ADAMW = tuple(f"finetuning.{key}" for key in ("learning_rate", "pretrained_learning_rate", "weight_decay", "clip"))
_SGD = ("finetuning.sgd_learning_rate", "finetuning.sgd_pretrained_learning_rate")
_VIT = ("architecture.vit", "architecture.drop_path")
# What our supervised trainers never read, as beginnings of keys. Other trainers may read everything.
_UNREAD: Mapping[str, tuple[str, ...]] = {
    SEEDED_NNUNET_TRAINER: ("architecture.", "finetuning.warmup_steps", *_ADAMW, *_SGD),
    UNETRPP_TRAINER: (*_VIT, *_SGD),
    MONAI_TRAINER: ("architecture.", *_SGD),
    UNETR_TRAINER: _SGD,
    FUSION_TRAINER: _SGD,
    PRETRAINED_NNUNET_TRAINER: _ADAMW,
}
# What they do not read where nothing is pre-trained; some of them always start from scratch.
_OF_PRETRAINED = tuple(
    f"finetuning.{key}"
    for key in (
        *("allow_other_dataset", "layer_decay", "pretrained_learning_rate", "pretrainer", "schedule"),
        *("sgd_pretrained_learning_rate", "stage_epochs", "transfer"),
    )
)
_WITHOUT_PRETRAINING = (SEEDED_NNUNET_TRAINER, UNETRPP_TRAINER, MONAI_TRAINER)


def pretraining_settings(recipe: Recipe, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the pre-training of a recipe may read.

    Args:
        recipe: with a pre-training.
        settings: plan values by key.
    """
    return _without((SUPERVISED, *_of_other_pretrainers(recipe)), settings)


def training_settings(recipe: Recipe, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the supervised training of a recipe may read.

    Args:
        recipe: a training with one of our trainers, or another one, which may read all of `finetuning`.
        settings: plan values by key.
    """
    unread = UNSUPERVISED if recipe.pretrainer is None else _of_other_pretrainers(recipe)
    if recipe.trainer in _UNREAD:
        unread += _UNREAD[recipe.trainer]
        if recipe.trainer in _WITHOUT_PRETRAINING:
            unread += (*_OF_PRETRAINED, PRETRAINED)
        elif settings.get(PRETRAINED) == FROM_SCRATCH:
            unread += _OF_PRETRAINED
    return _without(unread, settings)


def _of_other_pretrainers(recipe: Recipe) -> tuple[str, ...]:
    return (_VECTORPOSE,) if recipe.pretrainer == PRETRAINER else ()


def _without(beginnings: tuple[str, ...], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key == PATIENTS or not key.startswith(beginnings)}
