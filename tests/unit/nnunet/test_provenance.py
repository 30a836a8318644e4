"""What a result says about the checkout and the machine that made it."""

import subprocess
from pathlib import Path

import pytest

import nnunet_topomae
from nnunet_topomae.nnunet import provenance


def _git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_checkout_is_named_by_its_commit_and_a_plus_where_files_have_changed(tmp_path: Path) -> None:
    assert provenance.describe_commit(tmp_path) is None
    _git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    _git(tmp_path, "add", "file")
    _git(tmp_path, "commit", "-q", "-m", "first")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    assert provenance.describe_commit(tmp_path) == commit
    (tmp_path / "result").write_text("no part of the code")
    assert provenance.describe_commit(tmp_path) == commit
    (tmp_path / "file").write_text("2")
    assert provenance.describe_commit(tmp_path) == f"{commit}+"


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.describe_commit(tmp_path) is None


def test_an_installed_package_tells_its_commit_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnunet_topomae, "__file__", str(tmp_path / "nnunet_topomae" / "__init__.py"))
    monkeypatch.setattr(nnunet_topomae, "__version__", "0.1.1.dev5+gca8923521")
    assert provenance.describe_commit() == "ca8923521"
    monkeypatch.setattr(nnunet_topomae, "__version__", "0.2.0")
    assert provenance.describe_commit() is None


def test_packages_that_are_absent_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package"))
    assert list(provenance.describe_versions()) == ["Python", "numpy"]
