"""Continuing a training: which checkpoint, what it must hold, and what a killed training has left behind."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nnunet_topomae.files import TEMPORARY_SUFFIX
from nnunet_topomae.nnunet.names import BEST_CHECKPOINT, FINAL_CHECKPOINT, LATEST_CHECKPOINT, PREVIOUS_CHECKPOINT
from nnunet_topomae.training.devices import unwrap
from nnunet_topomae.training.loading import DamagedCheckpointError, load_checkpoint_file

if sys.platform != "win32":
    import fcntl

# Where a training continues: the first of these that is whole.
ORDER = (FINAL_CHECKPOINT, LATEST_CHECKPOINT, PREVIOUS_CHECKPOINT, BEST_CHECKPOINT)
# Of files.write_whole; earlier versions had no random part.
_TEMPORARY = re.compile(rf"\.checkpoint_\w+\.pth\.\d+(\.[0-9a-f]+)?{re.escape(TEMPORARY_SUFFIX)}")


def keep_previous(latest: Path) -> None:
    """Give the latest checkpoint a second name, under which it stays when a newer one replaces it.

    There is a latest checkpoint at every moment: the second name is a hard link. Where the file system has none, the
    file is renamed.

    Args:
        latest: `checkpoint_latest.pth`; nothing happens where it does not exist.
    """
    previous = latest.with_name(PREVIOUS_CHECKPOINT)
    if not latest.is_file():
        return
    link = previous.with_name(f".{previous.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        link.unlink(missing_ok=True)
        link.hardlink_to(latest)
    except OSError:
        latest.replace(previous)
    else:
        link.replace(previous)


def save_best_first(trainer: Any) -> None:
    """Where this epoch is the best one, write its checkpoint before the latest one, which then knows of it.

    nnU-Net does so afterwards. A training that is killed in between would forget how good its best epoch was, and
    replace it by a worse one.

    Args:
        trainer: at the end of an epoch; one that logs no pseudo Dice has no best epoch.
    """
    averages = trainer.logger.get_value("ema_fg_dice", None)
    if len(averages) <= trainer.current_epoch:
        return
    if trainer._best_ema is None or averages[-1] > trainer._best_ema:
        trainer._best_ema = averages[-1]
        trainer.print_to_log_file(f"new best moving average of the pseudo Dice: {averages[-1]:.4f}")
        trainer.save_checkpoint(str(Path(trainer.output_folder) / BEST_CHECKPOINT))


def reopen(folder: Path) -> None:
    """Call the final checkpoint of a training that has ended early, and is continued, the latest one.

    Otherwise nnU-Net would continue from it again, although newer checkpoints exist.

    Args:
        folder: the fold's.
    """
    final, latest = folder / FINAL_CHECKPOINT, folder / LATEST_CHECKPOINT
    if final.is_file() and not latest.exists():
        final.replace(latest)


def drop_previous(folder: Path) -> None:
    """Remove the previous checkpoint of a fold, which a finished or a new training does not need.

    Args:
        folder: the fold's.
    """
    (folder / PREVIOUS_CHECKPOINT).unlink(missing_ok=True)


def sweep(folder: Path) -> list[str]:
    """Remove half-written checkpoints of processes that have ended.

    A process holds a lock on the file while it writes, so a file without one belongs to nobody.

    Args:
        folder: the fold's.

    Returns:
        Names of the files removed.
    """
    removed = []
    for file in sorted(folder.glob(f".checkpoint_*{TEMPORARY_SUFFIX}")):
        if _TEMPORARY.fullmatch(file.name) and _unused(file):
            with suppress(FileNotFoundError):
                file.unlink()
                removed.append(file.name)
    return removed


def _unused(file: Path) -> bool:
    if sys.platform == "win32":
        return False
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # a writer holds it, or the file system has no locks
        return False
    return True


def newest_whole(asked: Path, log: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that is asked for, or the next older one that can be read.

    Args:
        asked: the file that nnU-Net found.
        log: is told every broken file, and the one taken instead.

    Returns:
        The file and its content.

    Raises:
        DamagedCheckpointError: none can be read; names all of them.
        UntrustedCheckpointError: one would run code.
    """
    older = ORDER[ORDER.index(asked.name) + 1 :] if asked.name in ORDER else ()
    broken = []
    for name in (asked.name, *older):
        file = asked.with_name(name)
        try:
            checkpoint = load_checkpoint_file(file)
        except FileNotFoundError:
            continue
        except DamagedCheckpointError as error:
            broken.append(str(error))
            continue
        for line in broken:
            log(f"broken checkpoint: {line}")
        if broken:
            log(f"continuing from {file} instead, the newest checkpoint that is whole")
        return file, checkpoint
    raise DamagedCheckpointError(
        f"no checkpoint to continue from in {asked.parent}: {' '.join(broken) or 'there is none.'} "
        "Train without --c to start again."
    )


def check_same_training(described: Mapping[str, Any], own: Mapping[str, Any], file: Path) -> None:
    """Refuse to continue from a checkpoint of another data set, plan, configuration or fold.

    Args:
        described: manifest of the checkpoint; empty where another program has written it.
        own: the same facts of this training.
        file: the checkpoint, for the error.

    Raises:
        ValueError: a fact differs; names all that do.
    """
    different = [
        f"{key} {described[key]}, not {value}" for key, value in own.items() if described.get(key, value) != value
    ]
    if different:
        raise ValueError(
            f"{file} is a checkpoint of another training ({'; '.join(different)}), which may have seen validation "
            "cases of this one. Move it away, or train without --c."
        )


def restore(trainer: Any, checkpoint: Mapping[str, Any], file: Path) -> None:
    """Put a training back to where it was when it wrote a checkpoint.

    Args:
        trainer: initialised; its weights, optimiser, scaler, log and epoch are replaced.
        checkpoint: content of the file.
        file: the checkpoint, for errors.

    Raises:
        ValueError: the checkpoint lacks an entry, or does not fit the network.
    """
    try:
        unwrap(trainer.network).load_state_dict(checkpoint["network_weights"])
        trainer.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if trainer.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            trainer.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        trainer.logger.load_checkpoint(checkpoint["logging"])
        trainer._best_ema = checkpoint["_best_ema"]
        trainer.my_init_kwargs = checkpoint["init_args"]
        trainer.current_epoch = checkpoint["current_epoch"]
    except KeyError as error:
        raise ValueError(f"{file} is no checkpoint of this training: it has no entry {error}") from error
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} does not fit this network ({_first_difference(error)}). It was written with another plan or "
            "version: restore the plans file, or train without --c to start again."
        ) from error
    axes = checkpoint.get("inference_allowed_mirroring_axes", trainer.inference_allowed_mirroring_axes)
    trainer.inference_allowed_mirroring_axes = axes


def _first_difference(error: Exception) -> str:
    """Torch lists everything that does not fit, one a line below a heading."""
    lines = str(error).strip().split("\n")
    return (lines[1] if len(lines) > 1 else lines[0]).strip()
