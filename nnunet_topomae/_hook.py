"""Lets nnU-Net's own commands find our trainers and our planner by name. Standard library only.

nnU-Net looks classes up by walking its own folders. ``install`` wraps the inner function of that search: for our
exact class names, asked for in the proper place, it returns our class; every other call reaches nnU-Net unchanged.
It is started by the entry point group ``torch.backends``, that is by ``import torch``, in every process. The
environment variable ``NNUNET_TOPOMAE_DISABLE=1`` turns it off; ``nnunet-topomae doctor`` shows whether it works.
"""

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

DISABLE_VARIABLE = "NNUNET_TOPOMAE_DISABLE"
SEARCH_MODULE = "nnunetv2.utilities.find_class_by_name"
SEARCH_FUNCTION = "_recursive_find_python_class"

TRAINERS_PLACE = "nnunetv2.training.nnUNetTrainer"
PLANNERS_PLACE = "nnunetv2.experiment_planning"
CLASSES = {
    "TopoMAEPretrainer": (TRAINERS_PLACE, "nnunet_topomae.trainers.pretrainer"),
    "VectorPOSEPretrainer": (TRAINERS_PLACE, "nnunet_topomae.trainers.vectorpose_pretrainer"),
    "TopoMAEFusionTrainer": (TRAINERS_PLACE, "nnunet_topomae.trainers.fusion_trainer"),
    "UNETRPPTrainer": (TRAINERS_PLACE, "nnunet_topomae.trainers.unetrpp_trainer"),
    "UNETRTrainer": (TRAINERS_PLACE, "nnunet_topomae.trainers.unetr_trainer"),
    "MONAITrainer": (TRAINERS_PLACE, "nnunet_topomae.trainers.monai_trainer"),
    "PretrainedNNUNetTrainer": (TRAINERS_PLACE, "nnunet_topomae.trainers.pretrained_nnunet_trainer"),
    "SeededNNUNetTrainer": (TRAINERS_PLACE, "nnunet_topomae.trainers.seeded_trainer"),
    "TopoMAEPlanner": (PLANNERS_PLACE, "nnunet_topomae.plans.planner"),
}
"""Class name -> (the package that nnU-Net searches for it, the module that defines it)."""

_MARK = "_nnunet_topomae"


def disabled(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the user has turned the hook off."""
    return environment.get(DISABLE_VARIABLE, "0") not in ("", "0")


def answers(search_module: ModuleType) -> bool:
    """Whether nnU-Net's class search, already imported, asks us first."""
    return hasattr(getattr(search_module, SEARCH_FUNCTION, None), _MARK)


def install() -> None:
    """Wrap nnU-Net's class search now, or as soon as it is imported. Never raises: it runs in ``import torch``."""
    with contextlib.suppress(Exception):
        if disabled():
            return
        if SEARCH_MODULE in sys.modules:
            _wrap_search(sys.modules[SEARCH_MODULE])
        elif not any(isinstance(finder, _WrapOnImport) for finder in sys.meta_path):
            sys.meta_path.insert(0, _WrapOnImport())


def _wrap_search(module: ModuleType) -> None:
    original = getattr(module, SEARCH_FUNCTION, None)
    if original is not None and not answers(module):
        setattr(module, SEARCH_FUNCTION, _answer_first(original))


def _answer_first(original: Callable[..., Any]) -> Callable[..., Any]:
    """nnU-Net's inner search function, with our answer before its walk over the folders."""
    announced: set[str] = set()

    @functools.wraps(original)
    def search(folder: str, class_name: str, *args: Any, **kwargs: Any) -> Any:
        place, module = CLASSES.get(class_name, (None, ""))
        current_module = kwargs["current_module"] if "current_module" in kwargs else next(iter(args), None)
        if place is None or current_module != place:
            return original(folder, class_name, *args, **kwargs)
        found = getattr(importlib.import_module(module), class_name)
        if class_name not in announced:
            announced.add(class_name)
            print(
                f"nnunet-topomae: {class_name} is {module}.{class_name} ({DISABLE_VARIABLE}=1 turns this off)",
                file=sys.stderr,
            )
        return found

    setattr(search, _MARK, True)
    return search


class _WrapOnImport(MetaPathFinder):
    """Finds nnU-Net's search module as the other finders do, and wraps its search once the module has run."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != SEARCH_MODULE:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            run_module = spec.loader.exec_module

            def run_and_wrap(module: ModuleType) -> None:
                run_module(module)
                _wrap_search(module)

            spec.loader.exec_module = run_and_wrap  # type: ignore[method-assign]
        return spec
