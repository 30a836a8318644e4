"""Phantom CT volumes: a small data set whose structures have known topology, made from a seed.

Each volume is an elliptic body of soft tissue in air with four labelled structures:

=====  =======  ============================================  ==========  ======  =====
label  name     shape                                         components  tunnels voids
=====  =======  ============================================  ==========  ======  =====
1      organ    bumpy ellipsoid                                        1       0      0
2      shell    wall around a fluid-filled cavity                      1       0      1
3      ring     torus                                                  1       1      0
4      vessel   trunk along the body with branching side arms          1       0      0
=====  =======  ============================================  ==========  ======  =====
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from jaxtyping import Int16, UInt8
from numpy import ndarray
from numpy.random import Generator
from scipy.ndimage import gaussian_filter

from nnunet_topomae.datasets.phantom_shapes import TWIG_RADIUS, Field, Points, place_structures
from nnunet_topomae.files import read_json, write_json
from nnunet_topomae.geometry import as_size3
from nnunet_topomae.nnunet.names import DATASET_FILE
from nnunet_topomae.types import Size3

LABELS = {"background": 0, "organ": 1, "shell": 2, "ring": 3, "vessel": 4}
AIR_HU, FAT_HU, MUSCLE_HU, FLUID_HU = -1000.0, -100.0, 45.0, 15.0
STRUCTURE_HU = {1: -30.0, 2: 130.0, 3: 190.0, 4: 250.0}
NOISE_HU = 20.0
TEXTURE_HU = 14.0
DATASET_SUFFIX = "TopoMAEPhantom"


@dataclass(frozen=True, eq=False)
class Phantom:
    """One volume.

    Attributes:
        image: intensities in HU (D, H, W).
        labels: 0 background, then see :data:`LABELS`.
        spacing: voxel size in mm along (D, H, W).
    """

    image: Int16[ndarray, "D H W"]
    labels: UInt8[ndarray, "D H W"]
    spacing: tuple[float, float, float]


def make_phantom(shape: Sequence[int], spacing: tuple[float, float, float], generator: Generator) -> Phantom:
    """Draw one phantom.

    A voxel belongs to a structure when more than half of it lies inside; its intensity is the mean over its contents
    (partial volume). Texture is smooth over about 8 mm, noise over about one voxel, as in a reconstructed CT.

    Args:
        shape: voxels along (D, H, W).
        spacing: voxel size in mm along (D, H, W).
        generator: source of all randomness.

    Raises:
        ValueError: voxels too coarse to resolve the structures.
    """
    size = as_size3(shape, "shape")
    radius = _body_radius(size, spacing)
    points = _voxel_positions(size, spacing)
    jitter = generator.normal(0.0, 6.0, size=8)  # HU, case to case
    image = np.full(size, AIR_HU, dtype=np.float32)
    tissue = _texture(size, spacing, generator)
    body = np.hypot(points[1] / (0.93 * radius), points[2] / (0.97 * radius))
    _paint(image, _coverage(body - 1.0), FAT_HU + jitter[0])
    _paint(image, _coverage(body - 0.93), MUSCLE_HU + jitter[1] + tissue)
    labels = np.zeros(size, dtype=np.uint8)
    structures, cavity = place_structures(points, radius, size[0] * spacing[0] / 2, generator)
    for label, shape_function in structures.items():
        coverage = _coverage(shape_function)
        _paint(image, coverage, STRUCTURE_HU[label] + jitter[1 + label] + tissue)
        labels[coverage > 0.5] = label
    _paint(image, _coverage(cavity), FLUID_HU + jitter[6])
    noise = gaussian_filter(generator.standard_normal(size, dtype=np.float32), 0.6)
    image += noise * np.float32(NOISE_HU / noise.std())
    return Phantom(np.clip(np.rint(image), -1024, 3071).astype(np.int16), labels, spacing)


def _body_radius(size: Size3, spacing: tuple[float, float, float]) -> float:
    """Half of the body's in-plane width in mm, the unit of all lengths below."""
    if len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(f"spacing must be three positive numbers in mm, got {spacing}")
    radius = 0.5 * min(size[1] * spacing[1], size[2] * spacing[2])
    thinnest = 2 * TWIG_RADIUS * radius
    if thinnest < 1.7 * max(spacing) or size[0] * spacing[0] < 2.0 * radius:
        raise ValueError(
            f"shape {size} with spacing {spacing} mm is too coarse or too flat: the thinnest structure measures "
            f"{thinnest:.1f} mm and must span 1.7 voxels, and the first axis must be at least as long as the body is "
            "wide. Use more voxels or a smaller spacing, for example shape (40, 64, 64) with spacing (3.0, 1.5, 1.5)."
        )
    return radius


def _voxel_positions(size: Size3, spacing: tuple[float, float, float]) -> Points:
    """Positions of the voxel centres in mm from the centre of the volume."""
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * s for n, s in zip(size, spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _coverage(field: Field) -> Field:
    """Fraction of each voxel inside the surface ``field = 0``, by the plane that touches it there.

    A plane with normal n crosses a voxel over the width sum_i |n_i| s_i. The gradient per voxel holds n_i s_i times
    the field's own scale, so the formula needs neither the spacing nor a true distance.
    """
    width = sum(np.abs(gradient) for gradient in np.gradient(field))
    coverage: Field = np.clip(0.5 - field / np.maximum(width, 1e-6), 0.0, 1.0)
    return coverage


def _paint(image: Field, coverage: Field, intensity: Field | float) -> None:
    """Blend ``intensity`` into ``image`` in place."""
    image += coverage * (intensity - image)


def _texture(size: Size3, spacing: tuple[float, float, float], generator: Generator) -> Field:
    """Smooth random intensity variation in HU, isotropic in mm."""
    noise = generator.standard_normal(size, dtype=np.float32)
    smooth = gaussian_filter(noise, [4.0 / s for s in spacing])
    texture: Field = smooth * np.float32(TEXTURE_HU / smooth.std())
    return texture


def write_phantom_dataset(
    folder: Path, dataset_id: int, cases_train: int, cases_test: int, seed: int, shape: Size3 = (40, 64, 64)
) -> Path:
    """Write phantoms as an nnU-Net raw data set: imagesTr, labelsTr, imagesTs, labelsTs, dataset.json.

    The data set appears complete or not at all. If it exists with the same parameters, nothing is written. A case
    depends on the seed and its own number only, so a larger data set of the same seed begins with the same cases.

    Args:
        folder: nnU-Net's raw data folder (`nnUNet_raw`).
        dataset_id: nnU-Net's number of the data set, 1 to 999.
        cases_train: number of labelled training cases; nnU-Net's five folds need at least 5.
        cases_test: number of held-out cases.
        seed: not negative.
        shape: mean shape (D, H, W); cases vary by up to two voxels, spacing around (3.0, 1.5, 1.5) mm.

    Returns:
        the folder of the data set.

    Raises:
        ValueError: bad numbers, or the folder holds phantoms with other parameters.
    """
    if not 1 <= dataset_id <= 999 or cases_train < 5 or cases_test < 0 or seed < 0:
        raise ValueError(
            "phantoms need a dataset_id of 1 to 999, at least 5 training cases, no fewer than 0 test cases and a seed "
            f"that is not negative; got {dataset_id}, {cases_train}, {cases_test}, {seed}"
        )
    target = folder / f"Dataset{dataset_id:03d}_{DATASET_SUFFIX}"
    recipe: dict[str, Any] = {
        "cases_train": cases_train,
        "cases_test": cases_test,
        "seed": seed,
        "shape": list(as_size3(shape, "shape")),
    }
    if target.exists():
        _check_recipe(target, recipe)
        return target
    folder.mkdir(parents=True, exist_ok=True)
    # The temporary name must not begin with "Dataset": nnU-Net would take it for a second data set of this number.
    temporary = Path(tempfile.mkdtemp(prefix=".phantom.", dir=folder))
    try:
        temporary.chmod(0o755)
        _write_cases(temporary, recipe["shape"], [("Tr", cases_train), ("Ts", cases_test)], seed)
        write_json(temporary / DATASET_FILE, _dataset_json(recipe), indent=2)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _write_cases(folder: Path, shape: Sequence[int], splits: Sequence[tuple[str, int]], seed: int) -> None:
    """Write images and labels of all splits; test cases draw from streams of their own."""
    for stream, (split, cases) in enumerate(splits):
        (folder / f"images{split}").mkdir()
        (folder / f"labels{split}").mkdir()
        for index in range(cases):
            generator = np.random.default_rng((seed, stream, index))
            varied = [n + int(generator.integers(-2, 3)) for n in shape]
            in_plane = round(1.5 * float(generator.uniform(0.95, 1.05)), 3)
            phantom = make_phantom(
                varied, (round(float(generator.uniform(2.85, 3.15)), 3), in_plane, in_plane), generator
            )
            case = f"phantom_{'test_' if split == 'Ts' else ''}{index:03d}"
            _write_nifti(folder / f"images{split}" / f"{case}_0000.nii.gz", phantom.image, phantom.spacing)
            _write_nifti(folder / f"labels{split}" / f"{case}.nii.gz", phantom.labels, phantom.spacing)


def _write_nifti(path: Path, array: ndarray, spacing: tuple[float, float, float]) -> None:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])  # SimpleITK counts axes as (x, y, z)
    SimpleITK.WriteImage(image, path)


def _dataset_json(recipe: dict[str, Any]) -> dict[str, Any]:
    return {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": recipe["cases_train"],
        "file_ending": ".nii.gz",
        "description": "Synthetic CT phantoms of known topology, made by nnunet-topomae",
        "phantom": recipe,
    }


def _check_recipe(target: Path, recipe: dict[str, Any]) -> None:
    """Raise unless ``target`` holds phantoms made with ``recipe``."""
    description = target / DATASET_FILE
    found = read_json(description).get("phantom") if description.is_file() else None
    if found != recipe:
        raise ValueError(
            f"{target} exists and is not the data set asked for: it was made with {found}, wanted {recipe}. "
            "Delete it, or take another folder or data set number."
        )
