"""`nnunet-topomae preprocess-unlabeled`: preprocess images without labels for pre-training."""

import argparse
from copy import deepcopy
from pathlib import Path

from nnunet_topomae.nnunet.names import CONFIGURATION, PLANS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments, named as in nnUNetv2_preprocess."""
    parser.add_argument("-d", required=True, metavar="ID", help="data set id or name, already planned and preprocessed")
    parser.add_argument(
        "-i",
        type=Path,
        metavar="FOLDER",
        help="images CASE_0000.nii.gz, or a sub-folder of DICOM slices per case; default: imagesUn of the raw data set",
    )
    parser.add_argument("-p", default=PLANS, metavar="PLANS", help="plans (default: %(default)s)")
    parser.add_argument("-c", default=CONFIGURATION, metavar="CONFIGURATION", help="default: %(default)s")
    parser.add_argument("-np", type=int, default=1, metavar="N", help="cases at a time (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Preprocess what is new or has changed."""
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from tqdm import tqdm

    from nnunet_topomae.datasets.unlabeled import (
        NEEDED_KEYS,
        RAW_FOLDER,
        UnlabeledPreprocessing,
        find_images,
        preprocess_unlabeled,
    )
    from nnunet_topomae.nnunet.dataset import channel_names, read_dataset_json
    from nnunet_topomae.nnunet.folders import nnunet_folder
    from nnunet_topomae.nnunet.plan_checks import check_plans
    from nnunet_topomae.nnunet.plans_file import read_plans

    dataset = maybe_convert_to_dataset_name(int(args.d) if args.d.isdigit() else args.d)
    folder = nnunet_folder("nnUNet_preprocessed") / dataset
    file = folder / f"{args.p}.json"
    plans = read_plans(file)
    check_plans(plans, args.c, str(file), NEEDED_KEYS)
    manager = PlansManager(deepcopy(plans))
    description = read_dataset_json(folder)
    data_folder = folder / manager.get_configuration(args.c).data_identifier
    if not data_folder.is_dir():
        raise FileNotFoundError(
            f"{data_folder} does not exist. Preprocess the data set first: nnUNetv2_preprocess -d {args.d} "
            f"-plans_name {args.p} -c {args.c}"
        )
    source = args.i or nnunet_folder("nnUNet_raw") / dataset / RAW_FOLDER
    images = find_images(source, description["file_ending"], len(channel_names(description)))
    task = UnlabeledPreprocessing(plans, args.c, description, data_folder)
    done = list(tqdm(preprocess_unlabeled(task, images, args.np), "unlabelled images", len(images), unit="image"))
    print(f"{len(done)} unlabelled images in {task.folder}. TopoMAEPretrainer reads them with -p {args.p} -c {args.c}.")
    return 0
