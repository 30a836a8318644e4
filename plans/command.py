"""`nnunet-topomae plan`: fingerprint, plan and preprocess with TopoMAEPlanner, without nnU-Net's class search."""

import argparse

CONFIGURATIONS = ("3d_fullres", "3d_lowres")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments, named as in nnUNetv2_plan_and_preprocess."""
    parser.add_argument("-d", type=int, nargs="+", required=True, metavar="ID", help="data set ids")
    parser.add_argument("-gpu_memory_target", type=float, default=8, metavar="GB", help="GPU memory to plan for")
    parser.add_argument("-overwrite_plans_name", default="TopoMAEPlans", metavar="NAME", help="name of the plans")
    parser.add_argument("-c", nargs="+", default=list(CONFIGURATIONS), metavar="CONFIGURATION", help="to preprocess")
    parser.add_argument("-npfp", type=int, default=8, metavar="N", help="processes for the fingerprint")
    parser.add_argument("-np", type=int, default=4, metavar="N", help="processes for preprocessing")
    parser.add_argument("--verify_dataset_integrity", action="store_true", help="check the raw data first")
    parser.add_argument("--no_pp", action="store_true", help="plan only")


def run(args: argparse.Namespace) -> int:
    """Plan and preprocess the data sets."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiment_dataset,
        preprocess_dataset,
    )

    from nnunet_topomae.plans.planner import TopoMAEPlanner

    extract_fingerprints(
        args.d, num_processes=args.npfp, check_dataset_integrity=args.verify_dataset_integrity, clean=False
    )
    for dataset in args.d:
        _, name = plan_experiment_dataset(
            dataset,
            TopoMAEPlanner,
            gpu_memory_target_in_gb=args.gpu_memory_target,
            overwrite_plans_name=args.overwrite_plans_name,
        )
        print(f"plans {name} written for data set {dataset}")
        if not args.no_pp:
            preprocess_dataset(dataset, name, tuple(args.c), num_processes=[args.np] * len(args.c))
    return 0
