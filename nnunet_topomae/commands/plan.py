"""`nnunet-topomae plan`: plan and preprocess with TopoMAEPlanner, make variants of plans, explain them."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_topomae.nnunet.dataset import channel_names, read_dataset_json
from nnunet_topomae.nnunet.folders import nnunet_folder
from nnunet_topomae.nnunet.names import CONFIGURATION, FINGERPRINT_FILE, PLANS, SPLITS_FILE
from nnunet_topomae.nnunet.plan_checks import NETWORK_KEYS, check_data_set, check_memory_target, check_plans

if TYPE_CHECKING:
    from nnunet_topomae.plans.preset import Preset

CONFIGURATIONS = (CONFIGURATION, "3d_lowres")
LABEL_FREE_PLANS = f"{PLANS}_labelfree"
# Without these keys of a plan, `--explain` cannot do.
EXPLAINED_KEYS = ("median_image_size_in_voxels", *NETWORK_KEYS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments, named as in nnUNetv2_plan_and_preprocess."""
    parser.add_argument("-d", type=int, nargs="+", required=True, metavar="ID", help="data set ids")
    parser.add_argument(
        "-gpu_memory_target", type=float, default=8.0, metavar="GB", help="GPU memory to plan for (default: 8)"
    )
    parser.add_argument(
        "-overwrite_plans_name", default=PLANS, metavar="NAME", help="name of the plans (default: %(default)s)"
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="published settings: acdc, btcv, msd_lung, msd_spleen or synapse; writes the plans TopoMAEPlans_NAME",
    )
    parser.add_argument(
        "--label-free",
        action="store_true",
        help="clip and scale CT by statistics that use no labels; writes the plans TopoMAEPlans_labelfree",
    )
    parser.add_argument(
        "-c", nargs="+", default=list(CONFIGURATIONS), metavar="CONFIGURATION", help="configurations to preprocess"
    )
    parser.add_argument("-npfp", type=int, default=8, metavar="N", help="processes for the data set's fingerprint")
    parser.add_argument("-np", type=int, default=4, metavar="N", help="processes for preprocessing")
    parser.add_argument("--verify_dataset_integrity", action="store_true", help="check the raw data first")
    parser.add_argument("--no_pp", action="store_true", help="plan, but do not preprocess")
    variants = parser.add_argument_group(
        "existing plans", "with --set or --explain, nothing is planned or preprocessed"
    )
    variants.add_argument("-p", default=PLANS, metavar="PLANS", help="plans to vary or explain (default: %(default)s)")
    variants.add_argument(
        "--set",
        nargs="+",
        metavar="KEY=VALUE",
        help="write a variant on the same preprocessed data, e.g. pretraining.epochs=200 patch_size=[96,96,96]",
    )
    variants.add_argument("--name", metavar="NAME", help="name of the variant")
    variants.add_argument("--explain", action="store_true", help="print why each number was chosen")


def run(args: argparse.Namespace) -> int:
    """Plan and preprocess the data sets, or work on existing plans."""
    check_memory_target(args.gpu_memory_target)
    if args.set or args.explain:
        for dataset in args.d:
            _work_on_plans(dataset, args)
        return 0
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiment_dataset,
        preprocess_dataset,
    )

    from nnunet_topomae.datasets.fingerprint import failures_name_the_image
    from nnunet_topomae.plans.planner import TopoMAEPlanner
    from nnunet_topomae.plans.preset import load_preset

    preset = load_preset(args.preset) if args.preset else None
    for dataset in args.d:
        _check_request(dataset, preset, args.label_free)
        _check_folds(dataset, preset)
    for dataset in args.d:
        raw, fingerprint = _folder("nnUNet_raw", dataset), _folder("nnUNet_preprocessed", dataset) / FINGERPRINT_FILE
        with failures_name_the_image(raw, fingerprint, read_dataset_json(raw), print):
            extract_fingerprints(
                [dataset], num_processes=args.npfp, check_dataset_integrity=args.verify_dataset_integrity, clean=False
            )
    for dataset in args.d:
        _, name = plan_experiment_dataset(
            dataset,
            partial(TopoMAEPlanner, adapt=_adaptation(dataset, preset, args.label_free)),
            gpu_memory_target_in_gb=args.gpu_memory_target,
            overwrite_target_spacing=None if preset is None else preset.get("spacing"),
            overwrite_plans_name=_plans_name(args, preset),
        )
        print(f"plans {name} written for data set {dataset}")
        if preset is not None:
            print(_place_splits(dataset, preset))
        if not args.no_pp:
            preprocess_dataset(dataset, name, tuple(args.c), num_processes=[args.np] * len(args.c))
    return 0


def _plans_name(args: argparse.Namespace, preset: "Preset | None") -> str:
    if preset is not None:
        return str(preset.plans_name)
    chosen = str(args.overwrite_plans_name)
    return LABEL_FREE_PLANS if args.label_free and chosen == PLANS else chosen


def _check_request(dataset: int, preset: "Preset | None", label_free: bool) -> None:
    """What is asked for makes sense for this data set.

    Raises:
        ValueError: its description or fingerprint is damaged, the preset is for other data, or label-free statistics
            would change nothing.
    """
    from nnunet_topomae.plans.preset import check_dataset

    folder = _folder("nnUNet_raw", dataset)
    check_data_set(folder.name)
    dataset_json = read_dataset_json(folder)
    if preset is not None:
        if label_free:
            raise ValueError(f"--label-free does not go with --preset {preset.name}, which takes nothing from labels")
        check_dataset(preset, dataset_json)
    channels = channel_names(dataset_json)
    if label_free and not any(str(channel).lower() == "ct" for channel in channels):
        raise ValueError(
            "--label-free changes how CT is clipped and scaled. No channel of this data set is named CT: nnU-Net "
            "normalises each of its images by itself, without labels. Plan without --label-free."
        )


def _adaptation(
    dataset: int, preset: "Preset | None", label_free: bool
) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
    """What to change in the plans before they are written."""
    if preset is not None:
        from nnunet_topomae.plans.preset import apply_preset

        return partial(apply_preset, preset=preset)
    if not label_free:
        return None
    from tqdm import tqdm

    from nnunet_topomae.datasets.intensities import sample_bodies, with_label_free_intensities

    files = [[Path(file) for file in case["images"]] for case in _training_cases(dataset).values()]
    description = read_dataset_json(_folder("nnUNet_raw", dataset))
    samples = list(tqdm(sample_bodies(files, description), "intensities", len(files), unit="case"))
    return partial(with_label_free_intensities, samples=samples)


def _check_folds(dataset: int, preset: "Preset | None") -> None:
    """Folds that exist agree, and have room for the published split; before anything that takes long.

    Raises:
        ValueError: they do not; says what to do.
    """
    from nnunet_topomae.datasets.splits import add_published, check_folds_agree, read_folds

    folders = _folder("nnUNet_raw", dataset), _folder("nnUNet_preprocessed", dataset)
    check_folds_agree(*folders)
    file = next((path for folder in reversed(folders) if (path := folder / SPLITS_FILE).is_file()), None)
    if file is not None and preset is not None and preset.split is not None:
        cases = list(_training_cases(dataset))
        if preset.split.fits(cases):
            add_published(read_folds(file), cases, preset.split, file)


def _place_splits(dataset: int, preset: "Preset") -> str:
    from nnunet_topomae.datasets.splits import place_published

    return place_published(_folder("nnUNet_preprocessed", dataset), list(_training_cases(dataset)), preset.split)


def _training_cases(dataset: int) -> dict[str, dict[str, Any]]:
    """Files of every training case, as nnU-Net finds them."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    return dict(get_filenames_of_train_images_and_targets(str(_folder("nnUNet_raw", dataset))))


def _folder(kind: str, dataset: int) -> Path:
    """Folder of a data set below one of nnU-Net's folders."""
    from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name

    return nnunet_folder(kind) / str(convert_id_to_dataset_name(dataset))


def _work_on_plans(dataset: int, args: argparse.Namespace) -> None:
    """Write a variant of existing plans, explain it or them."""
    from nnunet_topomae.nnunet.plans_file import read_plans, write_plans
    from nnunet_topomae.plans.explain import explain
    from nnunet_topomae.plans.variants import make_variant, parse_setting

    folder = _folder("nnUNet_preprocessed", dataset)
    file = folder / f"{args.p}.json"
    plans = read_plans(file)
    configurations = [name for name in args.c if name in plans["configurations"]]
    if not configurations:
        raise ValueError(f"plans {args.p} have none of {', '.join(args.c)}, but {', '.join(plans['configurations'])}")
    for configuration in configurations:
        check_plans(plans, configuration, str(file), EXPLAINED_KEYS if args.explain else ())
    if args.set:
        if not args.name:
            raise ValueError("--set writes a variant and needs --name NAME for it")
        plans = make_variant(plans, args.name, configurations, dict(map(parse_setting, args.set)))
        path = write_plans(plans, folder)
        print(f"{path} written. Train with -p {args.name}; the preprocessed data of {args.p} are used.")
    if args.explain:
        dataset_json = read_dataset_json(folder)
        for configuration in configurations:
            print("\n" + explain(plans, dataset_json, configuration))
