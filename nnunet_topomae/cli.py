"""The command ``nnunet-topomae``: chooses a command's module and imports only that one."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from nnunet_topomae import __version__

USER_ERROR = 2


class Command(NamedTuple):
    """A module with ``add_arguments(parser)`` and ``run(args) -> exit code``, and a line of help."""

    module: str
    help: str


COMMANDS = {
    "demo": Command(
        "nnunet_topomae.commands.demo", "run the whole pipeline on generated phantoms: a small benchmark with a report"
    ),
    "convert": Command(
        "nnunet_topomae.commands.convert", "make an nnU-Net data set from a download: BTCV, Synapse, ACDC, MSD"
    ),
    "plan": Command("nnunet_topomae.commands.plan", "plan a data set with TopoMAEPlanner, vary or explain plans"),
    "preprocess-unlabeled": Command(
        "nnunet_topomae.commands.preprocess_unlabeled", "preprocess images without labels for pre-training"
    ),
    "train": Command(
        "nnunet_topomae.commands.train", "train in several processes that torchrun starts, on one or several machines"
    ),
    "export-weights": Command(
        "nnunet_topomae.commands.export_weights", "write pre-trained weights of nnU-Net's own network for stock nnU-Net"
    ),
    "export-encoder": Command(
        "nnunet_topomae.commands.export_encoder", "write a pre-trained encoder as safetensors, with a model card"
    ),
    "report": Command("nnunet_topomae.commands.report", "write a page about one training, also while it runs"),
    "stop": Command("nnunet_topomae.commands.stop", "end a training after its epoch, with its final checkpoint"),
    "push": Command("nnunet_topomae.commands.push", "upload an exported encoder to the Hugging Face Hub"),
    "pull": Command("nnunet_topomae.commands.pull", "download an exported encoder from the Hugging Face Hub"),
    "doctor": Command("nnunet_topomae.commands.doctor", "check the installation, or describe a checkpoint"),
    "benchmark": Command(
        "nnunet_topomae.commands.benchmark", "compare recipes over data sets, folds and seeds: run, watch, report"
    ),
    "parameters": Command(
        "nnunet_topomae.commands.parameters", "count parameters and operations of the networks of a plan"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: arguments after the program's name; ``sys.argv`` if not given.
    """
    name, arguments = _choose(argv)
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"nnunet-topomae {name}", description=_sentence(command.help))
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    debug = "--debug" in arguments
    try:
        module = importlib.import_module(command.module)
        module.add_arguments(parser)
        return int(module.run(parser.parse_args(arguments)))
    except (ValueError, OSError, RuntimeError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _choose(argv: Sequence[str] | None) -> tuple[str, list[str]]:
    """The command's name and the arguments for it."""
    parser = argparse.ArgumentParser(
        prog="nnunet-topomae",
        description="Topology- and spatiality-aware masked self pre-training for nnU-Net v2.",
        epilog="`nnunet-topomae COMMAND -h` shows a command's arguments.",
    )
    parser.add_argument("--version", action="version", version=f"nnunet-topomae {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparsers.add_parser(name, help=command.help, add_help=False)
    chosen, arguments = parser.parse_known_args(argv)
    return chosen.command, arguments


if __name__ == "__main__":
    sys.exit(main())
