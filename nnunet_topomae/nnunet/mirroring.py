"""Labels of paired organs, which mirroring left and right would confuse. Standard library only."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from nnunet_topomae.config import SECTION

OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l", "lt": "rt", "rt": "lt"}
# Shorter names, such as LV and RV of the heart, are no pair of mirrored organs.
SHORTEST_NAME = 4


def left_right_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Names that differ in the side only.

    Examples are `left_kidney` and `right_kidney`, `kidney_L` and `kidney_R`, `lkid` and `rkid`.

    Args:
        names: of labels.

    Returns:
        pairs of names, the one that comes first among the names first.
    """
    known = {name.lower(): name for name in names}
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    for lower, name in known.items():
        for other in _mirrored(lower):
            if other in known and other != lower:
                pairs.setdefault(frozenset((lower, other)), (name, known[other]))
    return list(pairs.values())


def _mirrored(name: str) -> list[str]:
    """What the same organ of the other side may be called."""
    words = re.sub(r"[a-z]+", lambda found: OTHER_SIDE.get(found[0], found[0]), name)
    initial = OTHER_SIDE[name[0]] + name[1:] if name[:1] in ("l", "r") and len(name) >= SHORTEST_NAME else name
    return [words, initial]


def mirroring_advice(plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> str:
    """What to do about plans that mirror all axes although labels tell left from right; empty where all is well.

    Args:
        plans: content of a plans file; configurations without our section do not count.
        dataset_json: content of `dataset.json`.
    """
    pairs = left_right_pairs(dataset_json["labels"])
    mirroring = [
        name
        for name, configuration in plans["configurations"].items()
        if SECTION in configuration and configuration[SECTION].get("finetuning", {}).get("mirror_axes") is None
    ]
    if not pairs or not mirroring:
        return ""
    several = f" and {len(pairs) - 1} more pairs" if len(pairs) > 1 else ""
    return (
        f"{plans['plans_name']} ({', '.join(mirroring)}) mirrors left and right in augmentation and prediction, but "
        f"{' and '.join(pairs[0])}{several} are different labels. Leave the left-right axis out; for images in LPS or "
        "RAS, it is axis 2: nnunet-topomae plan -d ID --name NAME --set finetuning.mirror_axes=[0,1]"
    )
