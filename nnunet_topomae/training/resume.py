"""Continuing a training: which checkpoint, what it must hold, and what a killed training has left behind."""

import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nnunet_topomae.files import TEMPORARY_SUFFIX
from nnunet_topomae.nnunet.names import BEST_CHECKPOINT, FINAL_CHECKPOINT, LATEST_CHECKPOINT, PREVIOUS_CHECKPOINT
from nnunet_topomae.training.checkpoints import ENTRY, STEPS
from nnunet_topomae.training.devices import unwrap
from nnunet_topomae.training.failures import results_can_be_written
from nnunet_topomae.training.loading import DamagedCheckpointError, load_checkpoint_file

if sys.platform != "win32":
    import fcntl

# Where a training continues: the first of these that is whole.
ORDER = (FINAL_CHECKPOINT, LATEST_CHECKPOINT, PREVIOUS_CHECKPOINT, BEST_CHECKPOINT)
_SECONDS_OF_A_DAY = 86_400
# Of files.write_whole; earlier versions had no random part.
_TEMPORARY = re.compile(rf"\.checkpoint_\w+\.pth\.(\d+)(\.[0-9a-f]+)?{re.escape(TEMPORARY_SUFFIX)}")


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
        with results_can_be_written():
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


def clean(folder: Path, continued: bool, log: Callable[[str], None]) -> None:
    """Remove what an earlier training has left behind in a fold's folder.

    Args:
        folder: the fold's.
        continued: whether the training goes on; a new one does not need the previous checkpoint.
        log: is told every half-written file.
    """
    for name in sweep(folder):
        log(f"removed {name}, which a killed training has left half written")
    if not continued:
        drop_previous(folder)


def sweep(folder: Path) -> list[str]:
    """Remove half-written checkpoints of processes that have ended.

    A process holds a lock on the file while it writes, so a file without one belongs to nobody. Where the file system
    has no locks, a file must be a day old, and no process on this machine have the number in its name.

    Args:
        folder: the fold's.

    Returns:
        Names of the files removed.
    """
    removed = []
    for file in sorted(folder.glob(f".checkpoint_*{TEMPORARY_SUFFIX}")):
        name = _TEMPORARY.fullmatch(file.name)
        if name is not None and _unused(file, int(name[1])):
            with suppress(FileNotFoundError):
                file.unlink()
                removed.append(file.name)
    return removed


def _unused(file: Path, process: int) -> bool:
    if sys.platform == "win32":
        return False
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # a writer holds it
        return False
    except OSError:  # the file system has no locks
        return _is_old(file) and not _is_running(process)
    return True


def _is_old(file: Path) -> bool:
    return file.is_file() and time.time() - file.stat().st_mtime > _SECONDS_OF_A_DAY


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to somebody else, or the name is not of ours
        pass
    return True


def newer_of_previous_and_best(asked: Path) -> Path:
    """Where `--c` continues if there is no latest checkpoint: nnU-Net knows of the best one only.

    Args:
        asked: the file that nnU-Net found.

    Returns:
        The previous checkpoint where the best one is asked for and older, or one of the two is broken; else ``asked``.
    """
    previous = asked.with_name(PREVIOUS_CHECKPOINT)
    if asked.name != BEST_CHECKPOINT or not previous.is_file():
        return asked
    try:
        return asked if _moment(asked) > _moment(previous) else previous
    except DamagedCheckpointError:  # newest_whole names it, and takes the other one
        return previous


def _moment(file: Path) -> tuple[int, int]:
    """Epochs that were done when a checkpoint was written, and steps of the next one."""
    checkpoint = load_checkpoint_file(file)
    return checkpoint.get("current_epoch", 0), checkpoint.get(ENTRY, {}).get(STEPS, 0)


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
