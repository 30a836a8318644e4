"""`nnunet-topomae push`: an exported encoder to the Hugging Face Hub."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="an encoder, written by export-encoder")
    parser.add_argument("repository", metavar="OWNER/NAME", help="repository on the Hub; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create the repository as private")


def run(args: argparse.Namespace) -> int:
    """Check the folder and send it."""
    from nnunet_topomae.training.hub import push

    print(push(args.folder, args.repository, args.private))
    return 0
