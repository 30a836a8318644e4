"""`nnunet-topomae export-encoder`: a pre-trained encoder as safetensors, with a model card."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint_final.pth of a pre-training")
    parser.add_argument(
        "--encoder",
        choices=("vit", "partner"),
        default="partner",
        help="which of the two encoders (default: %(default)s)",
    )
    parser.add_argument("-o", type=Path, required=True, metavar="FOLDER", help="folder to write")


def run(args: argparse.Namespace) -> int:
    """Write the folder."""
    from nnunet_topomae.training.exports import CARD_FILE, export_encoder

    if args.o.is_file():
        raise ValueError(f"{args.o} is a file, and an encoder is a folder: name another one with -o")
    export_encoder(args.checkpoint, args.o, args.encoder)
    print(f"{args.o} written. {args.o / CARD_FILE} shows how to load it; add the licence there.")
    return 0
