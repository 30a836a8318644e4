"""Encoders on a hub: against a small server that speaks the hub's language, and one that is not there."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nnunet_topomae.cli import main
from nnunet_topomae.training import hub
from nnunet_topomae.training.model_card import PLACEHOLDER

huggingface_hub = pytest.importorskip("huggingface_hub")
COMMIT = "a" * 40


class Handler(BaseHTTPRequestHandler):
    """Repository `somebody/encoder`."""

    files: "dict[str, bytes]"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _answer(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        files, path = self.server.files, self.path.split("?")[0]  # type: ignore[attr-defined]
        name = path.rpartition("/")[2]
        if path.startswith("/api/models/somebody/encoder/revision/"):
            listed = [{"rfilename": file} for file in files]
            self._answer(json.dumps({"id": "somebody/encoder", "sha": COMMIT, "siblings": listed}).encode())
        elif path.startswith("/api/models/somebody/encoder/tree/"):
            entries = [{"type": "file", "path": file, "size": len(files[file]), "oid": "0" * 40} for file in files]
            self._answer(json.dumps(entries).encode(), Content_Type="application/json")
        elif path.startswith("/somebody/encoder/resolve/") and name in files:
            self._answer(files[name], ETag=f'"{name}"', X_Repo_Commit=COMMIT)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(hub, "load_encoder", lambda folder: folder)  # its own tests are those of exports
    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.files = {  # type: ignore[attr-defined]
        "model.safetensors": b"weights",
        "config.json": b"{}",
        "README.md": b"# Card",
        "surprise.py": b"raise SystemExit",
    }
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{served.server_port}")
    monkeypatch.setenv("HF_TOKEN", "token")
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


def test_pull_fetches_what_belongs_to_an_encoder(server: Any, tmp_path: Path, capsys: Any) -> None:
    target = tmp_path / "below" / "encoder"
    assert main(["pull", "somebody/encoder", "-o", str(target), "--revision", "v1"]) == 0
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        name: server.files[name] for name in hub.REQUIRED
    }
    assert [path.name for path in target.parent.iterdir()] == ["encoder"]
    assert main(["pull", "somebody/encoder", "-o", str(target)]) == 2
    assert "exists. Name another folder" in capsys.readouterr().err


def test_pull_leaves_nothing_behind_if_it_fails(server: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"somebody/else at http://127.0.0.1.*(no such repository|Log in)"):
        hub.pull("somebody/else", tmp_path / "encoder")
    del server.files["config.json"]
    with pytest.raises(ValueError, match=r"somebody/encoder is no exported encoder: it lacks config.json"):
        hub.pull("somebody/encoder", tmp_path / "encoder")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    folder = tmp_path / "encoder"
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "notes.txt"):
        (folder / name).write_text("{}")
    (folder / "README.md").write_text(f"# Card\n\n{PLACEHOLDER}\n")
    return folder


def test_without_a_network_the_error_says_so(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(hub, "load_encoder", lambda folder: folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setenv("HF_TOKEN", "token")
        (encoder / "README.md").write_text("Licence: CC-BY-4.0")
        for arguments in (["push", str(encoder), "me/it"], ["pull", "me/it", "-o", str(tmp_path / "new")]):
            assert main(arguments) == 2
            error = capsys.readouterr().err
            assert error.startswith("error: me/it at http://127.0.0.1") and "Without a network, copy" in error
    assert not (tmp_path / "new").exists()


def test_push_sends_the_files_of_an_encoder_under_a_licence(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    done: list[Any] = []

    class Api:
        def __init__(self, endpoint: str | None, library_name: str) -> None:
            self.endpoint = endpoint or "https://hub"

        def create_repo(self, repository: str, private: bool | None, exist_ok: bool) -> None:
            assert exist_ok
            done.append((repository, private))

        def upload_folder(self, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str) -> str:
            chosen = huggingface_hub.utils.filter_repo_objects(
                [path.name for path in folder_path.iterdir()], allow_patterns=allow_patterns
            )
            done.append((repo_id, sorted(chosen)))
            return "https://hub/commit"

    monkeypatch.setattr(hub, "load_encoder", lambda folder: folder)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert main(["push", str(encoder), "me/it"]) == 2
    assert "README.md has no licence yet" in capsys.readouterr().err and not done
    (encoder / "README.md").write_text("Licence: CC-BY-4.0")
    assert main(["push", str(encoder), "me/it", "--private"]) == 0
    assert done == [("me/it", True), ("me/it", ["README.md", "config.json", "model.safetensors"])]
    assert "https://hub/commit" in capsys.readouterr().out
    (encoder / "README.md").unlink()
    assert main(["push", str(encoder), "me/it"]) == 2
    assert "README.md is missing" in capsys.readouterr().err
