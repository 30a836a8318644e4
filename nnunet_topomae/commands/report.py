"""The command ``nnunet-topomae report``: the page of one training."""

import argparse
from pathlib import Path

from nnunet_topomae.commands.stop import fold_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="folder of the training: DATASET/TRAINER__PLANS__CONFIGURATION/fold_N"
    )
    parser.add_argument("-o", type=Path, metavar="FILE", help="the page (default: report.html in the folder)")
    parser.add_argument("--embed-images", action="store_true", help="show crops of cases and their reconstructions")


def run(args: argparse.Namespace) -> int:
    """Write the page, and say where it is."""
    from nnunet_topomae.reports.run import write_run_report

    print(write_run_report(fold_folder(args.run), args.o, args.embed_images))
    return 0
