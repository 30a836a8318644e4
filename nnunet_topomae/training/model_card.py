"""The model card of an exported encoder: what it is, what it was trained on, how to use it."""

from collections.abc import Mapping
from typing import Any

_CARD = """---
library_name: nnunet-topomae
tags: [medical-imaging, segmentation, self-supervised]
license: other
---

# {title}

Pre-trained with nnunet-topomae {version} by masked reconstruction with topological, spatial and consistency losses
(arXiv 2406.10519). No label was used.

| | |
|---|---|
| weights | {weights:,} |
| data set | {dataset}, fold {fold} |
| images read | {cases} training cases, {unlabeled} unlabelled images |
| plans, configuration | {plans}, {configuration} |
| patch | {patch} voxels of {spacing} mm |
| channels, normalisation | {channels}, {normalisation} |
| epochs | {epochs} of {iterations} steps |
| versions | {versions} |
{curve}
## Use

```python
import torch
from nnunet_topomae.training.exports import load_encoder

encoder = load_encoder("{folder}").eval()
crop = torch.zeros(1, {channels}, {size})  # preprocessed as nnU-Net does with these plans
with torch.no_grad():
    features = encoder(crop)
vector = {vector}
```

## Licence and limits

{placeholder}

The encoder has seen the images that are counted above. Do not test it on them. It was not made for diagnosis, and
nothing is known of its quality on other scanners, regions of the body and groups of patients: measure it on yours.
"""
# What the author of an encoder has to replace before it is handed on.
PLACEHOLDER = "The licence of these weights depends on that of the images: write yours here, and replace `other` above."

_VECTORS = {
    "vit": "features.mean(dim=1)  # (1, N, E) tokens -> (1, E), for a classifier",
    "partner": "features[-1].mean(dim=(2, 3, 4))  # the coarsest feature map -> (1, E), for a classifier",
}


def model_card(described: Mapping[str, Any], which: str, weights: int, folder: str, curve: str | None) -> str:
    """The card as Markdown. It counts images and names none of them.

    Args:
        described: what the checkpoint says about itself.
        which: ``vit`` or ``partner``.
        weights: number of the encoder's weights.
        folder: name of the folder that the encoder is written to.
        curve: name of a picture of the losses in the same folder, None without one.
    """
    plan, manifest, section = described["plan"], described["manifest"], described["config"]["pretraining"]
    network = plan.get("network")
    partner = "UNETR++" if network is None else network["class"].rpartition(".")[2]
    name = f"ViT ({described['config']['architecture']['vit']})" if which == "vit" else partner
    return _CARD.format(
        title=f"Encoder of a {name}, pre-trained on {manifest['dataset']}",
        version=described["version"],
        weights=weights,
        dataset=manifest["dataset"],
        fold=manifest["fold"],
        cases=len(manifest["cases"]),
        unlabeled=len(manifest.get("unlabeled", ())),
        plans=manifest["plans_name"],
        configuration=manifest["configuration"],
        patch=" x ".join(map(str, plan["patch_size"])),
        spacing=" x ".join(f"{value:g}" for value in plan["spacing"]),
        channels=plan["channels"],
        normalisation=", ".join(plan["normalization"]),
        epochs=section["epochs"],
        iterations=section["iterations_per_epoch"],
        versions=", ".join(f"{key} {value}" for key, value in described["versions"].items() if value),
        curve=f"\n![Losses over the epochs]({curve})\n" if curve else "",
        folder=folder,
        placeholder=PLACEHOLDER,
        size=", ".join(map(str, plan["patch_size"])),
        vector=_VECTORS[which],
    )
