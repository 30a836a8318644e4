"""`nnunet-topomae report`: make the demo's page again."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `nnunet-topomae report`."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of a finished demo")


def run(args: argparse.Namespace) -> int:
    """Render the page again; returns the exit code."""
    from nnunet_topomae.reports.demo import write_report

    print(write_report(args.out))
    return 0
