"""The BTCV abdomen download (Synapse syn3193805), with all 13 organs or the 8 of the Synapse benchmark.

Organs and their values in the download, from the challenge's page: 1 spleen, 2 right kidney, 3 left kidney,
4 gallbladder, 5 esophagus, 6 liver, 7 stomach, 8 aorta, 9 inferior vena cava, 10 portal and splenic vein, 11 pancreas,
12 right adrenal gland, 13 left adrenal gland.
"""

import re
from collections.abc import Mapping
from pathlib import Path

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
        source: the unpacked download: `RawData`, its `Training` or a folder above.
        with_test: also take the images of `Testing`, which have no labels.

    Raises:
        FileNotFoundError: there is no `Training/img` and `Training/label`.
        ValueError: an image without a label map or the other way round.
    """
    return _find(source, BTCV_LABELS, with_test)


def find_synapse(source: Path, with_test: bool = True) -> Download:
    """The 8 organs of the Synapse benchmark; the other five become background.

    The benchmark's 12 test cases are among the 30 with labels: the published split is fold 5. The challenge's own test
    images have no labels.

    Args:
        source: the unpacked download: `RawData`, its `Training` or a folder above.
        with_test: also take the images of `Testing`.

    Raises:
        FileNotFoundError: there is no `Training/img` and `Training/label`.
        ValueError: an image without a label map or the other way round.
    """
    return _find(source, SYNAPSE_LABELS, with_test)


def _find(source: Path, labels: Mapping[str, int], with_test: bool) -> Download:
    training = _training_folder(source)
    images, label_maps = _numbered(training / "img", "img"), _numbered(training / "label", "label")
    for number in sorted(images.keys() ^ label_maps.keys()):
        lacking = "label map" if number in images else "image"
        raise ValueError(f"{(images | label_maps)[number]} has no {lacking} in {training}")
    cases = [RawCase(f"img{n}", (images[n],), label_maps[n]) for n in sorted(images)]
    test = training.parent / "Testing" / "img"
    if with_test and test.is_dir():
        cases += [
            RawCase(f"img{n}", (path,), None, training=False) for n, path in sorted(_numbered(test, "img").items())
        ]
    return Download(
        root=training.parent,
        channel_names=("CT",),
        labels=labels,
        label_values={value: labels.get(organ, 0) for organ, value in BTCV_LABELS.items()},
        cases=tuple(cases),
        reference=REFERENCE,
    )


def _training_folder(source: Path) -> Path:
    """`Training` of the download, which holds `img` and `label`."""
    for folder in (source, source / "Training", source / "RawData" / "Training", source / "Abdomen/RawData/Training"):
        if (folder / "img").is_dir() and (folder / "label").is_dir():
            return folder.resolve()
    raise FileNotFoundError(
        f"no Training/img and Training/label in {source}. Unpack the download's RawData.zip and name its RawData."
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
