"""The model card of an exported encoder: what it is, what it was trained on, how to use it."""

from collections.abc import Mapping
from typing import Any

from nnunet_topomae.config import SECTION, TopoMAEConfig
from nnunet_topomae.data.cases import RAW_FILES
from nnunet_topomae.losses.weights import term_weights

_CARD = """---
library_name: nnunet-topomae
tags: [medical-imaging, segmentation, self-supervised]
license: other
---

# {title}

Pre-trained with nnunet-topomae {version} on images alone; no label was used. Terms of its loss: {terms}. The methods
are those of {methods}.

| | |
|---|---|
| weights | {weights:,} |
| data set | {dataset}, fold {fold} |
| images read | {images} |
| plans, configuration | {plans}, {configuration} |
| patch | {patch} voxels of {spacing} mm |
| channels, normalisation | {channels}, {normalisation} |
| epochs | {epochs} of {planned}, {iterations} steps each |
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

The encoder has seen the images that the table counts. Do not test it on them. It was not made for diagnosis, and
nothing is known of its quality on other scanners, regions of the body and groups of patients: measure it on yours.
"""
# What the author of an encoder has to replace before it is handed on.
PLACEHOLDER = "The licence of these weights depends on that of the images: write yours here, and replace `other` above."

_VECTORS = {
    "vit": "features.mean(dim=1)  # (1, N, E) tokens -> (1, E), for a classifier",
    "partner": "features[-1].mean(dim=(2, 3, 4))  # the coarsest feature map -> (1, E), for a classifier",
}


# Terms of the loss by the first part of their names (losses.weights.term_weights), with the work they are from.
_TOPOMAE, _VECTORPOSE = "arXiv 2406.10519", "VectorPOSE (Zhang et al. 2022)"
_TERMS = {
    "mse": ("masked reconstruction", _TOPOMAE),
    "topo": ("topology", _TOPOMAE),
    "spa": ("key points", _TOPOMAE),
    "rec": ("consistency with the other network", _TOPOMAE),
    "clean": ("reconstruction of corrupted crops", _VECTORPOSE),
    "edge": ("boundaries", _VECTORPOSE),
    "vec": ("vectors", _VECTORPOSE),
}


def model_card(
    described: Mapping[str, Any], which: str, weights: int, folder: str, curve: str | None, epochs: int
) -> str:
    """The card as Markdown. It counts images and names none of them.

    Args:
        described: what the checkpoint says about itself.
        which: ``vit`` or ``partner``.
        weights: number of the encoder's weights.
        folder: name of the folder that the encoder is written to.
        curve: name of a picture of the losses in the same folder, None without one.
        epochs: done.
    """
    terms = _terms(described["config"], which)
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
        terms=", ".join(dict.fromkeys(name for name, _ in terms)),
        methods=" and ".join(dict.fromkeys(source for _, source in terms)),
        images=count_images(manifest),
        plans=manifest["plans_name"],
        configuration=manifest["configuration"],
        patch=" x ".join(map(str, plan["patch_size"])),
        spacing=" x ".join(f"{value:g}" for value in plan["spacing"]),
        channels=plan["channels"],
        normalisation=", ".join(plan["normalization"]),
        epochs=epochs,
        planned=section["epochs"],
        iterations=section["iterations_per_epoch"],
        versions=", ".join(f"{key} {value}" for key, value in described["versions"].items() if value),
        curve=f"\n![Losses over the epochs]({curve})\n" if curve else "",
        folder=folder,
        placeholder=PLACEHOLDER,
        size=", ".join(map(str, plan["patch_size"])),
        vector=_VECTORS[which],
    )


def _terms(section: Mapping[str, Any], which: str) -> list[tuple[str, str]]:
    """What the terms with a weight say about one encoder, and where they are published."""
    config = TopoMAEConfig.from_configuration({SECTION: section})
    weights = term_weights(config.pretraining, config.topology, config.architecture.has_vit)
    kinds = {name.partition("_")[0] for name, weight in weights.items() if weight and name.endswith((which, "consis"))}
    return [words for kind, words in _TERMS.items() if kind in kinds]


def count_images(manifest: Mapping[str, Any]) -> str:
    """How many images the weights have seen, those of what the pre-training started from included; no names.

    Args:
        manifest: of the checkpoint.
    """
    counted = f"{len(manifest['cases'])} training cases, {len(manifest.get('unlabeled', ()))} unlabelled images"
    # Their data set stands before them; the raw files of an image have an entry of their own.
    elsewhere = {case.partition(RAW_FILES)[0] for case in manifest.get("sources", ()) if "/" in case}
    if elsewhere:
        counted += f", {len(elsewhere)} images of other data sets"
    if unlisted := len(manifest.get("unlisted", ())):
        counted += f", and unknown ones: training started from {unlisted} checkpoint that lists none"
    return counted
