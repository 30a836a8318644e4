"""The BTCV abdomen download (Synapse syn3193805), with all 13 organs or the 8 of the Synapse benchmark.

Organs and their values in the download, from the challenge's page: 1 spleen, 2 right kidney, 3 left kidney,
4 gallbladder, 5 esophagus, 6 liver, 7 stomach, 8 aorta, 9 inferior vena cava, 10 portal and splenic vein, 11 pancreas,
12 right adrenal gland, 13 left adrenal gland.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from nnunet_topomae.datasets.conversion import Download, RawCase

BTCV_LABELS = {
    "background": 0,
    "spleen": 1,
    "right kidney": 2,
    "left kidney": 3,
    "gallbladder": 4,
    "esophagus": 5,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "inferior vena cava": 9,
    "portal and splenic vein": 10,
    "pancreas": 11,
    "right adrenal gland": 12,
    "left adrenal gland": 13,
}
# The eight in TransUNet's order.
SYNAPSE_LABELS = {
    "background": 0,
    "aorta": 1,
    "gallbladder": 2,
    "left kidney": 3,
    "right kidney": 4,
    "liver": 5,
    "pancreas": 6,
    "spleen": 7,
    "stomach": 8,
}
REFERENCE = "https://www.synapse.org/#!Synapse:syn3193805"


def find_btcv(source: Path, with_test: bool = True) -> Download:
    """All 13 organs.

    Args:
        source: the unpacked download: `RawData`, its `Training` or a folder above; or MONAI's copy of it, with
            `imagesTr` and `labelsTr`.
        with_test: also take the images of `Testing` or `imagesTs`, which have no labels.

    Raises:
        FileNotFoundError: there are neither `Training/img` and `Training/label` nor `imagesTr` and `labelsTr`.
        ValueError: an image without a label map or the other way round, or TransUNet's copy, which has only slices.
    """
    return _find(source, BTCV_LABELS, with_test)


def find_synapse(source: Path, with_test: bool = True) -> Download:
    """The 8 organs of the Synapse benchmark; the other five become background.

    The benchmark's 12 test cases are among the 30 with labels: the published split is fold 5. The challenge's own test
    images have no labels.

    Args:
        source: as in :func:`find_btcv`.
        with_test: likewise.

    Raises:
        FileNotFoundError, ValueError: as :func:`find_btcv`.
    """
    return _find(source, SYNAPSE_LABELS, with_test)


class _Layout(NamedTuple):
    """Folders of images, label maps and test images below the root of a copy of the download."""

    images: str
    labels: str
    test: str


# As downloaded, and as MONAI's tutorials sort the same files.
_LAYOUTS = (_Layout("Training/img", "Training/label", "Testing/img"), _Layout("imagesTr", "labelsTr", "imagesTs"))
# Of TransUNet's copy.
_SLICES = ("train_npz", "test_vol_h5")


def _find(source: Path, labels: Mapping[str, int], with_test: bool) -> Download:
    root, layout = _layout(source)
    images, label_maps = _numbered(root / layout.images, "img"), _numbered(root / layout.labels, "label")
    for number in sorted(images.keys() ^ label_maps.keys()):
        lacking = "label map" if number in images else "image"
        raise ValueError(f"{(images | label_maps)[number]} has no {lacking} in {(root / layout.images).parent}")
    cases = [RawCase(f"img{n}", (images[n],), label_maps[n]) for n in sorted(images)]
    test = root / layout.test
    if with_test and test.is_dir():
        cases += [
            RawCase(f"img{n}", (path,), None, training=False) for n, path in sorted(_numbered(test, "img").items())
        ]
    return Download(
        root=root,
        channel_names=("CT",),
        labels=labels,
        label_values={value: labels.get(organ, 0) for organ, value in BTCV_LABELS.items()},
        cases=tuple(cases),
        reference=REFERENCE,
    )


def _layout(source: Path) -> tuple[Path, _Layout]:
    """Root and layout of a copy of the download."""
    here = source.resolve()
    above = here.parent if here.name == "Training" else here
    for root in (above, here / "RawData", here / "Abdomen/RawData"):
        for layout in _LAYOUTS:
            if (root / layout.images).is_dir() and (root / layout.labels).is_dir():
                return root, layout
    for folder in (here, *here.glob("*")):
        if folder.name in _SLICES:
            raise ValueError(
                f"{folder} is TransUNet's copy of the data: slices in h5 and npz files, clipped and scaled to [0, 1], "
                "without voxel spacing. No 3D plan can be made from it. Take the download itself, RawData.zip of "
                f"{REFERENCE}: its cases have the same numbers."
            )
    raise FileNotFoundError(
        f"no Training/img and Training/label, and no imagesTr and labelsTr, in {source}. Unpack the download's "
        "RawData.zip and name its RawData."
    )


def _numbered(folder: Path, prefix: str) -> dict[str, Path]:
    """Files `PREFIX0001.nii.gz` by number."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        number = re.fullmatch(rf"{prefix}(\d{{4}})\.nii(\.gz)?", path.name)
        if number is None:
            raise ValueError(f"{path} is not named {prefix}0001.nii.gz. Move it out of the folder.")
        found[number.group(1)] = path
    return found
