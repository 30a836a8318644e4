"""A coarser copy of a data set in nnU-Net's raw format, so that longer trainings fit on a CPU.

    python studies/coarse_dataset.py -d 904 --spacing 1.5 --to 907
    python studies/coarse_dataset.py -d 906 --spacing 1.5 --to 908 --tested 100

Images are smoothed and resampled linearly, labels by nnU-Net's own resampling of segmentations. Names of the cases,
channels and labels stay. With --tested, five folds test that many cases, and the others are in every training: more
labels per training for the same time spent on validation.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from numpy import ndarray

from nnunet_topomae.files import read_json, write_json


def resample(image: SimpleITK.Image, spacing: float, is_label: bool) -> SimpleITK.Image:
    """An image on a grid of cubic voxels that covers the same box.

    Args:
        image: 3D.
        spacing: edge of the new voxels in mm.
        is_label: whether it holds labels.
    """
    old = image.GetSpacing()[::-1]
    data = SimpleITK.GetArrayFromImage(image)
    shape = [max(1, round(size * edge / spacing)) for size, edge in zip(data.shape, old, strict=True)]
    new = [size * edge / cells for size, edge, cells in zip(data.shape, old, shape, strict=True)]
    if not is_label:
        sigma = [0.5 * edge for edge in new[::-1]]  # half a new voxel, in mm
        smooth = SimpleITK.SmoothingRecursiveGaussian(SimpleITK.Cast(image, SimpleITK.sitkFloat32), sigma)
        data = SimpleITK.GetArrayFromImage(smooth)
    made: ndarray = resample_data_or_seg_to_shape(
        data[None].astype(np.float32), shape, list(old), new, is_seg=is_label, order=1, order_z=0
    )[0]
    result = SimpleITK.GetImageFromArray(made.round().astype(np.uint8) if is_label else made.astype(np.float32))
    result.SetSpacing(new[::-1])
    result.SetDirection(image.GetDirection())
    # The corner of the first voxel stays where it is.
    shift = [0.5 * (after - before) for after, before in zip(new[::-1], image.GetSpacing(), strict=True)]
    rotation = np.array(image.GetDirection()).reshape(3, 3)
    result.SetOrigin((np.array(image.GetOrigin()) + rotation @ np.array(shift)).tolist())
    return result


def make_folds(cases: Sequence[str], tested: int) -> list[dict[str, list[str]]]:
    """Five folds in the format of `splits_final.json`, by a fixed random order.

    Args:
        cases: names.
        tested: how many of them are validated, each in one fold.
    """
    order = np.random.default_rng(0).permutation(sorted(cases)).tolist()
    folds = []
    for part in np.array_split(order[:tested], 5):
        held_out = sorted(part.tolist())
        folds.append({"train": sorted(set(order) - set(held_out)), "val": held_out})
    return folds


def main(argv: Sequence[str] | None = None) -> None:
    """Write the copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", type=int, required=True, help="data set to copy")
    parser.add_argument("--to", type=int, required=True, help="number of the copy")
    parser.add_argument("--spacing", type=float, required=True, help="edge of the new voxels in mm")
    parser.add_argument("--tested", type=int, help="number of cases that the folds test; by default nnU-Net's folds")
    args = parser.parse_args(argv)
    raw = Path(os.environ["nnUNet_raw"])
    source = next(raw.glob(f"Dataset{args.d:03d}_*"))
    target = raw / f"Dataset{args.to:03d}_{source.name.partition('_')[2]}{args.spacing:g}mm"
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True, exist_ok=True)
        for file in sorted((source / folder).iterdir()):
            made = resample(SimpleITK.ReadImage(file), args.spacing, folder == "labelsTr")
            SimpleITK.WriteImage(made, target / folder / file.name)
    dataset = read_json(source / "dataset.json")
    write_json(target / "dataset.json", dataset)
    if args.tested:
        cases = [file.name.removesuffix(dataset["file_ending"]) for file in (target / "labelsTr").iterdir()]
        write_json(target / "splits_final.json", make_folds(cases, args.tested))
    print(f"{target} written")


if __name__ == "__main__":
    main()
