"""The command line that studies of the spatial task share: one set of images, or a table of earlier results."""

import argparse
import json
from pathlib import Path
from typing import Any

from topology_training import read_images
from topology_volumes import phantom


def image_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every such study asks for; a study adds its steps and crops."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, metavar="JSON", help="only print the table of these results")
    parser.add_argument("--name", default="images")
    parser.add_argument("--images", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--window", nargs=2, type=float, metavar=("LOW", "HIGH"), help="CT window in HU")
    parser.add_argument("--patch", nargs=3, type=int, default=[24, 24, 24], metavar=("D", "H", "W"))
    parser.add_argument("--strides", type=json.loads, default=[[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="three phantoms and four steps, to see that it works")
    parser.add_argument("--out", type=Path, help="JSON; other results in it stay")
    return parser


def read_volumes(args: argparse.Namespace, parser: argparse.ArgumentParser, quick_crops: int) -> list[Any]:
    """The images that were asked for; with `--quick` phantoms, for which the settings become small ones."""
    if not args.out or not (args.images or args.quick):
        parser.error("--images and --out are needed")
    if not args.quick:
        return list(read_images(args.images, args.window))
    args.name, args.patch, args.steps, args.crops = "phantoms", [16, 24, 16], 4, quick_crops
    return [phantom((20, 36, 28), seed) for seed in range(3)]
