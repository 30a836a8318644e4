"""`nnunet-topomae convert`: from a download to a data set in nnU-Net format."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nnunet_topomae.datasets.conversion import Download

# Presets of the Decathlon's tasks.
MSD_PRESETS = {6: "msd_lung", 9: "msd_spleen"}


class Kind(NamedTuple):
    """Id and name of the data set that a download becomes, and its preset."""

    dataset_id: int
    name: str
    preset: str | None


KINDS = {
    "synapse": Kind(18, "Synapse", "synapse"),
    "btcv": Kind(17, "BTCV", "btcv"),
    "acdc": Kind(27, "ACDC", "acdc"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("kind", choices=[*KINDS, "msd"], help="which download it is")
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="folder of the unpacked download, which is not changed"
    )
    parser.add_argument(
        "-d",
        type=int,
        metavar="ID",
        help="data set id (default: 18 for synapse, 17 for btcv, 27 for acdc, the number of the task for msd)",
    )
    parser.add_argument("-np", type=int, default=2, metavar="N", help="cases at a time (default: %(default)s)")
    parser.add_argument("--no_test", action="store_true", help="leave out images of the download's test set")
    parser.add_argument(
        "--image-geometry", action="store_true", help="give label maps their image's spacing, origin and direction"
    )
    parser.add_argument(
        "--fix-direction",
        action="store_true",
        help="accept NIfTI files whose axes are not at right angles, and give them the closest axes that are",
    )


def run(args: argparse.Namespace) -> int:
    """Convert, and say what to do next."""
    from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
    from tqdm import tqdm

    from nnunet_topomae.datasets.conversion import Target, convert
    from nnunet_topomae.nnunet.folders import nnunet_folder
    from nnunet_topomae.plans.preset import load_preset

    raw = nnunet_folder("nnUNet_raw")
    if not args.source.is_dir():
        raise FileNotFoundError(f"{args.source} is not a folder. Unpack the download and name its folder.")
    kind = _kind(args.kind, args.source)
    download = _finder(args.kind)(args.source, not args.no_test)
    dataset_id = kind.dataset_id if args.d is None else args.d
    name = f"Dataset{dataset_id:03d}_{kind.name}"
    if taken := [other for other in find_candidate_datasets(dataset_id) if other != name]:
        raise ValueError(f"id {dataset_id} is taken by {taken[0]}. Choose another with -d.")
    published = load_preset(kind.preset).split if kind.preset else None
    if published is not None:
        try:
            published.apply([case.name for case in download.cases if case.training])
        except ValueError as error:
            print(f"{error}: there is no published fold 5, the five folds apply")
            published = None
    target = Target(raw / name, published, args.image_geometry, args.fix_direction)
    progress = tqdm(convert(download, target, args.np), "convert", len(download.cases), unit="case")
    done = len(list(progress))
    training = sum(case.training for case in download.cases)
    print(f"{target.folder}: {training} training and {len(download.cases) - training} test cases", end="")
    print("." if done else "; nothing to do, it was made from these files before.")
    if warning := _older_folds(target.folder):
        print(warning)
    print(f"Next: nnunet-topomae plan -d {dataset_id}" + (f" --preset {kind.preset}" if kind.preset else ""))
    return 0


def _older_folds(raw: Path) -> str | None:
    """What is wrong where the preprocessed data set has folds of its own, which nnU-Net would compare and refuse."""
    from nnunet_topomae.datasets.splits import check_folds_agree

    preprocessed = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112 - nnU-Net's name
    if not preprocessed:
        return None
    try:
        check_folds_agree(raw, Path(preprocessed) / raw.name)
    except ValueError as error:
        return f"Before you plan: {error}"
    return None


def _kind(name: str, source: Path) -> Kind:
    if name != "msd":
        return KINDS[name]
    from nnunet_topomae.datasets.msd import task_of

    number, task = task_of(source)
    return Kind(number, task, MSD_PRESETS.get(number))


def _finder(name: str) -> "Callable[[Path, bool], Download]":
    from nnunet_topomae.datasets.acdc import find_acdc
    from nnunet_topomae.datasets.btcv import find_btcv, find_synapse
    from nnunet_topomae.datasets.msd import find_msd

    return {"synapse": find_synapse, "btcv": find_btcv, "acdc": find_acdc, "msd": find_msd}[name]
