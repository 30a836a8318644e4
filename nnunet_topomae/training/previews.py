"""Preview of one pre-training case: what was masked and what the networks made of it."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from nnunet_topomae.files import write_whole
from nnunet_topomae.geometry import CropLocation, as_size3
from nnunet_topomae.training.failures import results_can_be_written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Crops are shown as they are stored: what is compared is a crop with its reconstructions. The image may have any
# orientation, and the plan may have permuted its axes, so the planes carry no anatomical names.
PLANES = ("across D", "across H", "across W")
TITLES = {
    "input": "Input",
    "masked": "Masked",
    "vit": "ViT reconstruction",
    "partner": "Partner's reconstruction",
    "boundaries": "Boundaries",
    "boundaries_vit": "ViT's boundaries",
    "boundaries_partner": "Partner's boundaries",
}
COLUMNS = tuple(TITLES)
_OPTIONAL = (
    *("vit", "partner", "key_points_vit", "key_points_partner"),
    *("boundaries", "boundaries_vit", "boundaries_partner"),
)
HIDDEN_COLOUR = (0.16, 0.30, 0.44)
_CROP_BOUNDS = ("lower", "upper", "volume_shape")


@dataclass(frozen=True, eq=False)
class Preview:
    """The first channel of one crop, in normalised intensities, with its reconstructions.

    Attributes:
        case: case identifier, also the name of the files.
        input: the crop (D, H, W).
        masked: the crop as the partner sees it: corrupted where boundaries are predicted, hidden voxels blanked.
        hidden: voxel mask, True = hidden.
        vit: reconstruction by the ViT-MAE; None where it was not trained.
        partner: reconstruction by its partner; None where it was not trained.
        spacing: voxel size in mm along (D, H, W).
        crop: where the crop lies in its volume.
        key_points_true: nine key points in the normalised frame of the volume (paper Sec. II-B).
        key_points_vit: prediction of the ViT branch, or None.
        key_points_partner: prediction of the partner's branch, or None.
        boundaries: true boundaries in [0, 1]; None where they are not predicted.
        boundaries_vit: prediction of the ViT branch, or None.
        boundaries_partner: prediction of the partner's branch, or None.

    Raises:
        ValueError: a spacing that is not positive, or a case name that is not a plain file name.
    """

    case: str
    input: Float[ndarray, "D H W"]
    masked: Float[ndarray, "D H W"]
    hidden: Bool[ndarray, "D H W"]
    vit: Float[ndarray, "D H W"] | None
    partner: Float[ndarray, "D H W"] | None
    spacing: tuple[float, float, float]
    crop: CropLocation
    key_points_true: Float[ndarray, "9 3"]
    key_points_vit: Float[ndarray, "9 3"] | None
    key_points_partner: Float[ndarray, "9 3"] | None
    boundaries: Float[ndarray, "D H W"] | None = None
    boundaries_vit: Float[ndarray, "D H W"] | None = None
    boundaries_partner: Float[ndarray, "D H W"] | None = None

    def __post_init__(self) -> None:
        if not self.case or Path(self.case).name != self.case:
            raise ValueError(f"case must be a plain file name, got {self.case!r}")
        if len(self.spacing) != 3 or min(self.spacing) <= 0:
            raise ValueError(f"spacing must be three positive numbers in mm, got {self.spacing}")
        shapes = {name: getattr(self, name).shape for name in (*self.columns, "hidden")}
        if len(set(shapes.values())) != 1:
            raise ValueError(f"all volumes of a preview must have the same shape, got {shapes}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the volumes that there are, out of COLUMNS."""
        return tuple(name for name in COLUMNS if getattr(self, name) is not None)

    def shown(self, column: str) -> Float[ndarray, "D H W"]:
        """A column's values: reconstructions have the input at voxels that the network did not have to rebuild."""
        values: Float[ndarray, "D H W"] = getattr(self, column)
        if column in ("vit", "partner") and self.boundaries is None:
            return np.where(self.hidden, values, self.input)
        return values

    def title(self, column: str) -> str:
        """Title of a column."""
        if column != "masked" or self.boundaries is None:
            return TITLES[column]
        return "Corrupted and masked" if self.hidden.any() else "Corrupted"

    def save(self, folder: Path) -> None:
        """Write `<case>.npz` and `<case>.png` into ``folder``; neither is ever seen half written."""
        with results_can_be_written():
            folder.mkdir(parents=True, exist_ok=True)
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "crop"}
        arrays = {name: value for name, value in values.items() if value is not None}
        bounds = {name: getattr(self.crop, name) for name in _CROP_BOUNDS}
        with write_whole(folder / f"{self.case}.npz") as file:
            np.savez_compressed(file, **arrays, **bounds)
        with write_whole(folder / f"{self.case}.png") as file:
            preview_figure(self).savefig(file, format="png")

    @classmethod
    def load(cls, path: Path) -> "Preview":
        """Read a `.npz` file that :meth:`save` wrote.

        Raises:
            ValueError: the file lacks an entry.
        """
        with np.load(path, allow_pickle=False) as stored:
            names = [item.name for item in fields(cls) if item.name != "crop"]
            missing = sorted({*names, *_CROP_BOUNDS} - set(_OPTIONAL) - set(stored.files))
            if missing:
                raise ValueError(f"{path} is not a preview: it lacks {', '.join(missing)}. Run the validation again.")
            values: dict[str, Any] = {name: stored[name] if name in stored.files else None for name in names}
            crop = CropLocation(*(as_size3(stored[name].tolist(), name) for name in _CROP_BOUNDS))
        values["case"] = str(values["case"])
        values["spacing"] = tuple(map(float, values["spacing"]))
        return cls(**values, crop=crop)


def preview_figure(preview: Preview) -> "Figure":
    """Draw what the networks see and predict in three planes through the centre of the crop.

    Images share one grey window, the 0.5 to 99.5 percentile of the input, boundaries have theirs from 0 to 1. Hidden
    voxels are blue in the masked column. Reconstructions of masked crops have the input at visible voxels, where masked
    autoencoders learn nothing; those of corrupted crops are shown as they are. Pixels have
    the aspect of the voxels in mm. Planes are named after the array's axes: the crop is in the orientation of the
    preprocessed image, which need not be the radiological one.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    low, high = np.percentile(preview.input, (0.5, 99.5))
    extent = np.array(preview.input.shape) * np.array(preview.spacing)  # mm
    heights = [extent[_plane_axes(plane)[0]] / extent[_plane_axes(plane)[1]] for plane in range(3)]
    shown = preview.columns
    width = 2.25 * len(shown)
    figure = Figure(figsize=(width, 0.3 + 2.2 * sum(heights)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(shown), gridspec_kw={"height_ratios": heights}, squeeze=False)
    for plane, plane_name in enumerate(PLANES):
        rows, columns = _plane_axes(plane)
        for axis, name in zip(axes[plane], shown, strict=True):
            window = (0.0, 1.0) if name.startswith("boundaries") else (low, high)
            pixels = _grey(_slice(preview.shown(name), plane), *window)
            if name == "masked":
                pixels[_slice(preview.hidden, plane)] = HIDDEN_COLOUR
            aspect = preview.spacing[rows] / preview.spacing[columns]
            axis.imshow(pixels, aspect=aspect, interpolation="nearest", origin="upper" if plane == 0 else "lower")
            axis.set(xticks=[], yticks=[])
            if plane == 0:
                axis.set_title(preview.title(name), fontsize=10)
        axes[plane][0].set_ylabel(plane_name, fontsize=10)
    return figure


def _grey(pixels: Float[ndarray, "height width"], low: float, high: float) -> Float[ndarray, "height width 3"]:
    """Map the window [low, high] to grey RGB values in [0, 1]."""
    grey = np.clip((pixels - low) / max(high - low, 1e-8), 0.0, 1.0)
    return np.repeat(grey[..., None], 3, axis=-1)  # (height, width) -> (height, width, 3)


def _plane_axes(plane: int) -> tuple[int, int]:
    """Array axes that run down and across the picture of a plane; plane 0, 1, 2 cuts axis D, H, W."""
    return ((1, 2), (0, 2), (0, 1))[plane]


def _slice(volume: Any, plane: int) -> Any:
    """The middle slice of ``volume`` across axis ``plane``."""
    return volume.take(volume.shape[plane] // 2, axis=plane)
