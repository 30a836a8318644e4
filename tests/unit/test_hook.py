"""The start-up hook: answers for our classes in the proper place only, and never disturbs `import torch`."""

import importlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from nnunet_topomae import _hook
from nnunet_topomae.config import FinetuningConfig
from nnunet_topomae.nnunet import names

SEARCH_SOURCE = """
calls = []

def _recursive_find_python_class(folder, class_name, current_module, verbose=False):
    calls.append((folder, class_name, current_module, verbose))
    return "nnU-Net's answer"

def recursive_find_python_class(folder, class_name, current_module):
    return _recursive_find_python_class(folder, class_name, current_module=current_module, verbose=True)
"""


@pytest.fixture
def search_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A stand-in for nnU-Net's search module and for a module of ours, not yet imported."""
    package = tmp_path / "standin"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "search.py").write_text(SEARCH_SOURCE)
    (package / "ours.py").write_text("class Trainer: pass\n")
    (package / "broken.py").write_text("import a_library_that_is_not_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finders = [finder for finder in sys.meta_path if not isinstance(finder, _hook._WrapOnImport)]
    monkeypatch.setattr(sys, "meta_path", finders)
    monkeypatch.delenv(_hook.DISABLE_VARIABLE, raising=False)
    monkeypatch.setattr(_hook, "SEARCH_MODULE", "standin.search")
    classes = {"Trainer": ("the.place", "standin.ours"), "Broken": ("the.place", "standin.broken")}
    monkeypatch.setattr(_hook, "CLASSES", classes)
    yield "standin.search"
    for name in [name for name in sys.modules if name.partition(".")[0] == "standin"]:
        del sys.modules[name]


def load_with_hook(search_name: str) -> ModuleType:
    _hook.install()
    return importlib.import_module(search_name)


def our_trainer() -> type:
    return importlib.import_module("standin.ours").Trainer


def test_wraps_a_search_that_is_imported_later(search_name: str) -> None:
    search = load_with_hook(search_name)
    assert _hook.answers(search)
    assert search.recursive_find_python_class("folder", "Trainer", "the.place") is our_trainer()
    assert search.calls == []


def test_wraps_a_search_that_is_already_imported(search_name: str) -> None:
    search = importlib.import_module(search_name)
    assert not _hook.answers(search)
    _hook.install()
    assert search.recursive_find_python_class("folder", "Trainer", "the.place") is our_trainer()


def test_looking_for_the_module_does_not_use_the_hook_up(search_name: str) -> None:
    _hook.install()
    assert importlib.util.find_spec(search_name) is not None
    assert _hook.answers(importlib.import_module(search_name))


@pytest.mark.parametrize(
    ("name", "place"),
    [("Trainer", "another.place"), ("Trainer", "the.place.variants"), ("Trainer", None), ("Trainers", "the.place")],
)
def test_everything_else_reaches_nnunet_unchanged(search_name: str, name: str, place: str | None) -> None:
    search = load_with_hook(search_name)
    assert search.recursive_find_python_class("folder", name, place) == "nnU-Net's answer"
    assert search.calls == [("folder", name, place, True)]


def test_accepts_the_place_by_position(search_name: str) -> None:
    search = load_with_hook(search_name)
    assert search._recursive_find_python_class("folder", "Trainer", "the.place", False) is our_trainer()
    assert search._recursive_find_python_class("folder", "Trainer", "elsewhere", False) == "nnU-Net's answer"


def test_installing_twice_wraps_once(search_name: str) -> None:
    _hook.install()
    search = load_with_hook(search_name)
    wrapped = search._recursive_find_python_class
    _hook.install()
    assert search._recursive_find_python_class is wrapped
    assert wrapped.__wrapped__.__code__.co_filename.endswith("search.py")
    assert sum(isinstance(finder, _hook._WrapOnImport) for finder in sys.meta_path) == 1


def test_says_once_that_it_answered(search_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    search = load_with_hook(search_name)
    for _ in range(2):
        search.recursive_find_python_class("folder", "Trainer", "the.place")
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert "standin.ours.Trainer" in output.err
    assert _hook.DISABLE_VARIABLE in output.err
    assert output.out == ""


def test_an_error_in_our_module_is_shown_as_it_is(search_name: str) -> None:
    search = load_with_hook(search_name)
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_installed"):
        search.recursive_find_python_class("folder", "Broken", "the.place")


@pytest.mark.parametrize(("value", "active"), [("1", False), ("yes", False), ("0", True), ("", True)])
def test_off_switch(search_name: str, monkeypatch: pytest.MonkeyPatch, value: str, active: bool) -> None:
    monkeypatch.setenv(_hook.DISABLE_VARIABLE, value)
    assert _hook.answers(load_with_hook(search_name)) is active


def test_leaves_a_search_without_the_inner_function_alone(search_name: str, tmp_path: Path) -> None:
    (tmp_path / "standin" / "search.py").write_text("def recursive_find_python_class(): return 1\n")
    search = load_with_hook(search_name)
    assert not _hook.answers(search)
    assert not hasattr(search, _hook.SEARCH_FUNCTION)
    assert search.recursive_find_python_class() == 1


def test_without_nnunet_nothing_happens(search_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hook, "SEARCH_MODULE", "standin.absent")
    _hook.install()
    with pytest.raises(ModuleNotFoundError, match=r"standin\.absent"):
        importlib.import_module("standin.absent")


def test_install_never_raises(search_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module(search_name)

    def fail(module: ModuleType) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(_hook, "_wrap_search", fail)
    assert _hook.install() is None


def test_classes_are_where_the_hook_says() -> None:
    for name, (_, module) in _hook.CLASSES.items():
        assert getattr(importlib.import_module(module), name).__module__ == module


def test_fallback_folder_offers_every_trainer() -> None:
    offered = importlib.import_module("nnunet_topomae.ext_trainer.topomae")
    trainers = {name: module for name, (place, module) in _hook.CLASSES.items() if place == _hook.TRAINERS_PLACE}
    assert {name: getattr(offered, name).__module__ for name in offered.__all__} == trainers


def test_names_of_classes_agree_where_they_cannot_be_shared() -> None:
    """The hook imports nothing, and the configuration lies on a floor below the names."""
    classes = {value for key, value in vars(names).items() if key.endswith(("TRAINER", "PLANNER"))}
    assert classes == set(_hook.CLASSES)
    assert get_args(FinetuningConfig.hints()["pretrainer"]) == (names.PRETRAINER, names.VECTORPOSE_PRETRAINER)


def test_importing_the_hook_imports_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import nnunet_topomae._hook\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['nnunet_topomae']"


DAMAGES = {
    "whole": {"nnunet_topomae/__init__.py": "", "nnunet_topomae/_hook.py": "def install(): print('started')\n"},
    "package missing": {},
    "hook missing": {"nnunet_topomae/__init__.py": ""},
    "half a file": {"nnunet_topomae/__init__.py": "", "nnunet_topomae/_hook.py": "def install(:"},
    "empty file": {"nnunet_topomae/__init__.py": "", "nnunet_topomae/_hook.py": ""},
    "package fails": {"nnunet_topomae/__init__.py": "raise RuntimeError('damaged')"},
    "binary": {"nnunet_topomae/__init__.py": "\0\0", "nnunet_topomae/_hook.py": ""},
    "hook fails": {"nnunet_topomae/__init__.py": "", "nnunet_topomae/_hook.py": "def install(): 1 / 0\n"},
}
# What torch does with its entry points; a failure there is a failure of `import torch`.
LIKE_TORCH = """
from importlib.metadata import distributions
import sys
# Nothing of the installation that is tested: neither an editable one nor one in site-packages.
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in repr(finder)]
sys.path[:] = [folder for folder in sys.path if "site-packages" not in folder]
(found,) = distributions(path=[sys.argv[1]])
for entry in found.entry_points:
    entry.load()()
print("torch is imported")
"""


@pytest.mark.parametrize("stderr", ["None", "open(os.devnull)"])
def test_a_damaged_installation_does_not_disturb_programs_without_standard_error(repository: Path, stderr: str) -> None:
    """As pythonw and daemons are; here it is missing, or not open for writing."""
    code = (
        f"import os, sys; sys.modules['nnunet_topomae._hook'] = None; sys.stderr = {stderr}\n"
        f"sys.path.insert(0, {str(repository)!r})\n"
        "import nnunet_topomae_start; nnunet_topomae_start.install(); print(1)"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "1\n", result.stderr


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_installation_does_not_disturb_torch(tmp_path: Path, repository: Path, damage: str) -> None:
    (tmp_path / "nnunet_topomae_start.py").write_text((repository / "nnunet_topomae_start.py").read_text())
    (tmp_path / "nnunet_topomae-1.dist-info").mkdir()
    (tmp_path / "nnunet_topomae-1.dist-info" / "METADATA").write_text("Name: nnunet-topomae\nVersion: 1\n")
    (entry,) = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["entry-points"].items()
    assert entry[0] == "torch.backends"
    ((name, target),) = entry[1].items()
    file = tmp_path / "nnunet_topomae-1.dist-info" / "entry_points.txt"
    file.write_text(f"[torch.backends]\n{name} = {target}\n")
    for path, content in DAMAGES[damage].items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    result = subprocess.run(
        [sys.executable, "-P", "-c", LIKE_TORCH, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [*(["started"] if damage == "whole" else []), "torch is imported"]
    assert (damage == "whole") != ("damaged installation" in result.stderr)
