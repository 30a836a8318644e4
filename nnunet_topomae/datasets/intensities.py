"""Intensity statistics of a data set without a look at its labels, in place of those of nnU-Net's fingerprint.

nnU-Net clips and scales CT by the intensities of labelled voxels. Here the voxels of the body take their place: those
above Otsu's threshold between air and tissue, found image by image.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from numpy import ndarray
from skimage.filters import threshold_otsu

from nnunet_topomae.nnunet.names import INTENSITY_SOURCE

LABEL_FREE = "voxels above Otsu's threshold in all images of the data set; no label was read"
VOXELS_PER_CASE = 100_000
SEED = 1234


def sample_body(image: Float[ndarray, "D H W"], generator: np.random.Generator) -> Float[ndarray, " _"]:
    """A random sample of the intensities above Otsu's threshold; of all voxels where the image is constant.

    Args:
        image: one channel.
        generator: chooses the sample.
    """
    body = image[image > threshold_otsu(image.reshape(-1))]
    if not body.size:
        body = image.reshape(-1)
    return generator.choice(body, VOXELS_PER_CASE) if body.size > VOXELS_PER_CASE else body


def sample_bodies(
    images: Sequence[Sequence[Path]], dataset_json: Mapping[str, Any]
) -> Iterator[list[Float[ndarray, " _"]]]:
    """Samples of every case, a list over channels.

    Args:
        images: files of every case, one per channel.
        dataset_json: content of dataset.json.
    """
    reader = determine_reader_writer_from_dataset_json(dict(dataset_json), str(images[0][0]), verbose=False)()
    for number, files in enumerate(images):
        channels = reader.read_images([str(file) for file in files])[0]
        generator = np.random.default_rng((SEED, number))
        yield [sample_body(channel.astype(np.float32), generator) for channel in channels]


def describe_intensities(samples: Sequence[Float[ndarray, " _"]]) -> dict[str, float | str]:
    """One channel's statistics under the names that nnU-Net's plans give them, and where they come from.

    Args:
        samples: intensities of every case.
    """
    values = np.concatenate(list(samples)).astype(np.float64)
    low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
    return {
        "mean": float(values.mean()),
        "median": float(median),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
        "percentile_00_5": float(low),
        "percentile_99_5": float(high),
        INTENSITY_SOURCE: LABEL_FREE,
    }


def with_label_free_intensities(
    plans: Mapping[str, Any], samples: Sequence[Sequence[Float[ndarray, " _"]]]
) -> dict[str, Any]:
    """Plans that clip and scale CT by statistics which use no label.

    Args:
        plans: content of a plans file.
        samples: intensities of every case, a list over channels, from :func:`sample_bodies`.
    """
    properties = {
        str(channel): describe_intensities(of_cases) for channel, of_cases in enumerate(zip(*samples, strict=True))
    }
    return {**plans, "foreground_intensity_properties_per_channel": properties}
