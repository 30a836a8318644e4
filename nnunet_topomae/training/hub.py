"""Exported encoders on the Hugging Face Hub, or on a server that speaks its language (`HF_ENDPOINT`)."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_topomae.training.exports import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, load_encoder
from nnunet_topomae.training.model_card import PLACEHOLDER
from nnunet_topomae.training.plots import PLOT_FILE

REQUIRED = (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE)
# Nothing else of a folder is sent or fetched.
FILES = (*REQUIRED, PLOT_FILE)


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Send an encoder to a repository, which is made if there is none.

    Args:
        folder: as :func:`nnunet_topomae.training.exports.export_encoder` writes it, with a licence in its card.
        repository: `OWNER/NAME`.
        private: a repository that is made is visible to its owner only.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the weights do not fit, or the card has no licence yet.
        RuntimeError: huggingface_hub is not installed, or the server cannot be reached, or refuses.
    """
    load_encoder(folder)
    card = folder / CARD_FILE
    if not card.is_file():
        raise FileNotFoundError(f"{card} is missing. Export the encoder again.")
    if PLACEHOLDER in card.read_text(encoding="utf-8"):
        raise ValueError(
            f"{card} has no licence yet, and others may use weights under a licence only. Replace the sentence "
            f"{PLACEHOLDER!r} and the line 'license: other'."
        )
    api = _api()
    with _explained(repository, api.endpoint):
        api.create_repo(repository, private=private or None, exist_ok=True)
        message = "Encoder exported by nnunet-topomae"
        return str(
            api.upload_folder(
                repo_id=repository, folder_path=folder, allow_patterns=list(FILES), commit_message=message
            )
        )


def pull(repository: str, folder: Path, revision: str | None = None) -> None:
    """Fetch an encoder; nothing in it is executed.

    Args:
        repository: `OWNER/NAME`.
        folder: appears when everything is there and fits.
        revision: branch, tag or commit; the main branch by default.

    Raises:
        FileExistsError: the folder exists.
        ValueError: the repository is no exported encoder.
        RuntimeError: huggingface_hub is not installed, or the server cannot be reached, or has no such repository.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists. Name another folder, or remove it.")
    api = _api()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fetched = Path(tempfile.mkdtemp(prefix=".pulling_", dir=folder.parent))
    try:
        with _explained(repository, api.endpoint):
            api.snapshot_download(repository, revision=revision, local_dir=fetched, allow_patterns=list(FILES))
        if missing := [name for name in REQUIRED if not (fetched / name).is_file()]:
            raise ValueError(f"{repository} is no exported encoder: it lacks {', '.join(missing)}")
        load_encoder(fetched)
        shutil.rmtree(fetched / ".cache", ignore_errors=True)  # of huggingface_hub
        fetched.chmod(0o755)
        fetched.replace(folder)
    finally:
        shutil.rmtree(fetched, ignore_errors=True)


def _api() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise RuntimeError("this needs huggingface_hub: pip install huggingface_hub") from error
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="nnunet-topomae")


@contextmanager
def _explained(repository: str, endpoint: str) -> Iterator[None]:
    """Errors of huggingface_hub and of its connection, in one line with a cure."""
    try:
        yield
    except Exception as error:
        code = getattr(getattr(error, "response", None), "status_code", None)
        cures = {
            401: "Log in with `hf auth login`, and check the name: a private repository looks as if there were none.",
            403: "Your token may not do this: log in with `hf auth login` and one that may write.",
            404: "There is no such repository or revision.",
        }
        offline = "Without a network, copy the folder instead: it holds all that `load_encoder` needs."
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RuntimeError(f"{repository} at {endpoint}: {reason} {cures.get(code or 0, offline)}") from error
