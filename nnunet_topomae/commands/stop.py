"""The command ``nnunet-topomae stop``: end a training after its epoch, with its final checkpoint."""

import argparse
from pathlib import Path

from nnunet_topomae.nnunet.names import FINAL_CHECKPOINT
from nnunet_topomae.training.record import FACTS_FILE
from nnunet_topomae.training.stopping import ask_to_end

# nnU-Net writes it whenever a training starts or continues.
_STARTED = "debug.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="folder of the training: DATASET/TRAINER__PLANS__CONFIGURATION/fold_N"
    )


def run(args: argparse.Namespace) -> int:
    """Write the file that asks the training to end."""
    folder = fold_folder(args.run)
    check_listens(folder)
    file = ask_to_end(folder)
    print(f"The training in {file.parent} ends after its epoch, with {FINAL_CHECKPOINT}. To take this back: rm {file}")
    return 0


def fold_folder(folder: Path) -> Path:
    """The folder of a training, which nnU-Net has written its log to.

    Args:
        folder: what the user names.

    Returns:
        The same folder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is another folder; names the folds in it, if there are some.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if any(folder.glob("training_log_*.txt")):
        return folder
    folds = sorted(path.parent.name for path in folder.glob("fold_*/training_log_*.txt"))
    advice = f"name one of its folds: {', '.join(dict.fromkeys(folds))}" if folds else "name a fold's folder, fold_N"
    raise ValueError(f"{folder} is not the folder of a training, which has a training_log_*.txt; {advice}")


def check_listens(folder: Path) -> None:
    """Refuse to ask where nobody reads the request; it would end the next `--c`.

    Args:
        folder: the fold's.

    Raises:
        ValueError: of another package's trainer, or of a training that has ended.
    """
    if not (folder / FACTS_FILE).is_file():
        raise ValueError(
            f"{folder} has no {FACTS_FILE}, so its trainer is not one of nnunet-topomae and would not read the "
            "request. Interrupt the training; --c continues it."
        )
    final, started = folder / FINAL_CHECKPOINT, folder / _STARTED
    # An older training's may lie in the folder of one that runs.
    if final.is_file() and not (started.is_file() and started.stat().st_mtime > final.stat().st_mtime):
        raise ValueError(f"the training in {folder} has ended, with {FINAL_CHECKPOINT}: there is nothing to stop")
