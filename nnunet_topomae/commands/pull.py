"""`nnunet-topomae pull`: an exported encoder from the Hugging Face Hub."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("repository", metavar="OWNER/NAME", help="repository on the Hub")
    parser.add_argument("-o", type=Path, required=True, metavar="FOLDER", help="folder to write; must not exist")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit (default: the main branch)")


def run(args: argparse.Namespace) -> int:
    """Fetch and check it."""
    from nnunet_topomae.training.exports import CARD_FILE
    from nnunet_topomae.training.hub import pull

    pull(args.repository, args.o, args.revision)
    print(f"{args.o} written. {args.o / CARD_FILE} says what it is and how to load it.")
    return 0
