"""Images and label maps as all pictures show them: turned to LPS, and intensities in a window with a name.

In LPS, indices grow towards the patient's left, back and head. Slices drawn with the lowest index at the left then
follow the radiological convention: the patient's right is at the left of the picture.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

ORIENTATION = "LPS"
PERCENTILES = (1, 99)
# Levels and widths in HU as radiologists use them.
CT_WINDOWS = {"lung": (-1350.0, 150.0), "bone": (-500.0, 1300.0), "soft tissue": (-160.0, 240.0)}
WORDS = {
    "lung": {"lung", "lungs", "pulmonary", "bronchus", "bronchi", "airway", "airways", "trachea"},
    "bone": {
        *("bone", "bones", "rib", "ribs", "vertebra", "vertebrae", "spine", "sacrum", "skull", "sternum", "clavicle"),
        *("scapula", "humerus", "femur", "tibia", "fibula", "pelvis", "hip", "mandible"),
    },
}
# Where CT values span less than this, they are no HU: the smallest span of a real image is that of fat and muscle.
SMALLEST_SPAN_HU = 50.0
# Degrees from which on a caption says that a volume is oblique.
SMALLEST_TILT = 5.0


@dataclass(frozen=True)
class Window:
    """What is black and what is white in a picture.

    Attributes:
        low: intensity that is shown black.
        high: intensity that is shown white.
        name: for the caption.
    """

    low: float
    high: float
    name: str

    def apply(self, values: ndarray) -> ndarray:
        """Intensities as grey values from 0 to 1, of the same shape."""
        grey: ndarray = np.clip((values.astype(np.float32) - self.low) / (self.high - self.low), 0, 1)
        return grey


class Oriented(NamedTuple):
    """A volume in LPS.

    Attributes:
        values: (D, H, W), from feet to head, front to back, right to left.
        spacing: voxel size in mm along (D, H, W).
        tilt: largest angle in degrees between an axis and that of the patient; 0 unless the volume is oblique.
    """

    values: ndarray
    spacing: tuple[float, float, float]
    tilt: float


def read_image(file: Path) -> Any:
    """A SimpleITK image, turned to LPS by flips and permutations of its axes; an oblique one stays oblique.

    Args:
        file: of any orientation.
    """
    import SimpleITK

    return SimpleITK.DICOMOrient(SimpleITK.ReadImage(file), ORIENTATION)


def read_volume(file: Path) -> Oriented:
    """Values of an image or label map, turned to LPS.

    Args:
        file: of any orientation.
    """
    import SimpleITK

    image = read_image(file)
    width, height, depth = image.GetSpacing()
    return Oriented(SimpleITK.GetArrayFromImage(image), (depth, height, width), find_tilt(image))


def find_tilt(image: Any) -> float:
    """Largest angle in degrees between an axis of an image in LPS and that of the patient.

    Args:
        image: of SimpleITK, in LPS.
    """
    cosines = np.diag(np.reshape(image.GetDirection(), (3, 3)))
    return float(np.degrees(np.arccos(np.clip(cosines.min(), -1, 1))))


def describe_orientation(tilt: float) -> str:
    """What a caption says about sides and planes.

    Args:
        tilt: as in :func:`find_tilt`.
    """
    text = "Radiological convention: R, the patient's right, is at the left."
    if tilt < SMALLEST_TILT:
        return text
    return f"{text} The volume is oblique by {tilt:.0f}°: planes and letters are those of the nearest axes."


def choose_window(
    values: ndarray,
    channel: str,
    structures: Iterable[str] = (),
    dataset: str = "",
    ct_window: tuple[float, float] | None = None,
) -> Window:
    """The window that suits an image.

    CT is shown in HU: in a lung or bone window where most structures, or else the data set, are named after lungs or
    bones, otherwise in the soft tissue window. Other channels, and CT that is not in HU, are shown from their 1st to
    their 99th percentile.

    Args:
        values: intensities of the image.
        channel: its name in `dataset.json`; nnU-Net takes `CT` for HU, in any case.
        structures: names of the labels.
        dataset: name of the data set.
        ct_window: HU to show where it is CT, in place of the choice.
    """
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    if channel.lower() != "ct" or high - low < SMALLEST_SPAN_HU:
        return Window(low, max(high, low + 1e-6), f"window from {PERCENTILES[0]} to {PERCENTILES[1]} % of intensities")
    if ct_window is not None:
        return Window(*ct_window, f"window from {ct_window[0]:g} to {ct_window[1]:g} HU")
    tissue = _tissue(structures) or _tissue([dataset]) or "soft tissue"
    low, high = CT_WINDOWS[tissue]
    return Window(low, high, f"{tissue} window, {low:.0f} to {high:.0f} HU")


def _tissue(names: Iterable[str]) -> str | None:
    """What more than half of the names speak of, if anything."""
    of_names = [set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())) for name in names]
    for tissue, words in WORDS.items():
        if sum(bool(words & found) for found in of_names) > len(of_names) / 2:
            return tissue
    return None
