"""nnU-Net finds our classes however both packages are installed.

Each environment is a fresh venv that sees the heavy libraries of the current one through links, but not its
nnunet-topomae; nothing is downloaded.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nnunet_topomae._hook import CLASSES, DISABLE_VARIABLE, TRAINERS_PLACE
from nnunet_topomae.topology import persistence_diagrams, wasserstein_distance

if not (find_spec("pip") and find_spec("setuptools") and find_spec("setuptools_scm")):
    pytest.skip("pip, setuptools and setuptools-scm are needed to build and install", allow_module_level=True)

EXPECTED = {name: module for name, (_, module) in CLASSES.items()}
TRAINERS = {name: module for name, (place, module) in CLASSES.items() if place == TRAINERS_PLACE}

# Prints the module of every class, found by nnU-Net's own functions here and in a spawned child.
LOOKUP = """
import importlib, json, multiprocessing, os, pickle, sys

def look_up():
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    import nnunetv2

    found = {}
    for name in sys.argv[1].split(","):
        if name.endswith("Planner"):
            folder = os.path.join(nnunetv2.__path__[0], "experiment_planning")
            cls = recursive_find_python_class(folder, name, current_module="nnunetv2.experiment_planning")
        else:
            try:
                cls = recursive_find_trainer_class_by_name(name)
            except RuntimeError:
                cls = None
        if cls is not None:
            assert pickle.loads(pickle.dumps(cls)) is cls
        found[name] = cls and cls.__module__
    return found

if __name__ == "__main__":
    import nnunet_topomae, nnunetv2
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        child = pool.apply(look_up)
    files = {"nnunet_topomae": nnunet_topomae.__file__, "nnunetv2": nnunetv2.__file__}
    print("\\nFOUND", json.dumps({"here": look_up(), "child": child, "files": files}))
"""


# Runs every example of the library, and one step of its loss.
ALONE = """
import doctest, importlib, pkgutil, sys
import torch
import topological_loss_3d as topology

assert importlib.util.find_spec("nnunetv2") is importlib.util.find_spec("scipy") is None
run = 0
for module in pkgutil.walk_packages(topology.__path__, "topological_loss_3d."):
    failed, attempted = doctest.testmod(importlib.import_module(module.name), optionflags=doctest.ELLIPSIS)
    assert not failed, module.name
    run += attempted
volume, made = torch.rand(2, 1, 1, 12, 11, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
made.requires_grad_()
topology.TopologicalLoss(threads=2)(made, volume).backward()
assert made.grad.abs().sum() > 0
for decimals in (1, 16):  # with many copies of points, and without
    rounded = [values[0, 0].detach().round(decimals=decimals) for values in (volume, made)]
    first, second = (topology.persistence_diagrams(values)[1] for values in rounded)
    assert abs(topology.verify(topology.wasserstein_matching(first, second))) < 1e-12
    print(repr(topology.wasserstein_distance(first, second)))
print(run, topology.__file__)
"""


class Environment:
    """A venv with links to this environment's libraries: all of them, or what the named distributions need."""

    def __init__(self, folder: Path, without: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> None:
        self.folder = folder
        libraries = folder / "libraries"
        libraries.mkdir(parents=True)
        hidden = ("nnunet_topomae", "__editable__", *without)
        kept = top_names(only)
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            if path.suffix != ".pth" and not path.name.startswith(hidden) and (not only or path.name in kept):
                (libraries / path.name).symlink_to(path)
        venv.create(folder / "venv", with_pip=False)
        self.python = folder / "venv" / "bin" / "python"
        site = subprocess.run(
            [self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        )
        (Path(site.stdout.strip()) / "libraries.pth").write_text(f"{libraries}\n")

    def install(self, *arguments: str) -> None:
        command = [self.python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.folder)
        assert result.returncode == 0, result.stdout + result.stderr

    def look_up(self, classes: dict[str, str], **environment: str) -> dict[str, Any]:
        script = self.folder / "look_up.py"
        script.write_text(LOOKUP)
        variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        result = subprocess.run(
            [self.python, script, ",".join(classes)],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env={**variables, **environment},
        )
        assert result.returncode == 0, result.stderr
        found = next(line for line in result.stdout.splitlines() if line.startswith("FOUND"))
        return json.loads(found.removeprefix("FOUND"))  # type: ignore[no-any-return]


def top_names(distributions: tuple[str, ...]) -> set[str]:
    """Files and folders of these distributions in site-packages, and of all that they need."""
    names, seen, waiting = set[str](), set[str](), list(distributions)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        found = importlib.metadata.distribution(name)
        names |= {file.parts[0] for file in found.files or ()}
        needs = map(Requirement, found.requires or ())
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return names


def copy_source(repository: Path, target: Path) -> Path:
    """The files of the source distribution, so that building leaves nothing in the checkout."""
    for folder in ("nnunet_topomae", "trainers", "plans"):
        shutil.copytree(repository / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "nnunet_topomae_start.py", "README.md", "LICENSE"):
        shutil.copy(repository / name, target / name)
    return target


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = copy_source(repository, tmp_path_factory.mktemp("source"))
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    result = subprocess.run([*command, "-w", target, source], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("installed"))
    environment.install(str(wheel))
    return environment


@pytest.mark.slow
def test_wheel_is_found_here_and_in_a_spawned_child(installed: Environment) -> None:
    found = installed.look_up(EXPECTED)
    assert found["here"] == found["child"] == EXPECTED
    assert str(installed.folder) in found["files"]["nnunet_topomae"]


@pytest.mark.slow
def test_wheel_has_every_file_and_touches_nothing_else(installed: Environment, repository: Path) -> None:
    site = next((installed.folder / "venv" / "lib").glob("python*/site-packages"))
    others = {path.name for path in site.iterdir() if not path.name.startswith("nnunet_topomae")}
    assert others - {"__pycache__"} == {"libraries.pth"}  # of nnunet_topomae_start.py
    wanted = files_below(repository / "nnunet_topomae")
    wanted |= {Path(name) / path for name in ("trainers", "plans") for path in files_below(repository / name)}
    assert {Path("py.typed"), Path("trainers/pretrainer.py"), Path("reports/templates/benchmark.html.j2")} <= wanted
    assert files_below(site / "nnunet_topomae") == wanted


def files_below(folder: Path) -> set[Path]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path for path in files if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_off_switch_leaves_nnunet_as_it_is(installed: Environment) -> None:
    nothing = dict.fromkeys(EXPECTED)
    found = installed.look_up(EXPECTED, **{DISABLE_VARIABLE: "1"})
    assert found["here"] == found["child"] == nothing


@pytest.mark.slow
def test_fallback_folder_without_the_hook(installed: Environment) -> None:
    folder = next((installed.folder / "venv" / "lib").glob("python*/site-packages/nnunet_topomae/ext_trainer"))
    found = installed.look_up(TRAINERS, TORCH_DEVICE_BACKEND_AUTOLOAD="0", nnUNet_extTrainer=str(folder))
    assert found["here"] == found["child"] == TRAINERS


@pytest.mark.slow
def test_editable_install(repository: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "environment")
    source = tmp_path / "source"
    source.mkdir()
    environment.install("--editable", str(copy_source(repository, source)))
    found = environment.look_up(EXPECTED)
    assert found["here"] == found["child"] == EXPECTED
    assert found["files"]["nnunet_topomae"] == str(source / "nnunet_topomae" / "__init__.py")


@pytest.mark.slow
def test_editable_nnunet(wheel: Path, tmp_path: Path) -> None:
    """As developers of nnU-Net have it: `pip install -e nnUNet`."""
    package = Path(sysconfig.get_path("purelib")) / "nnunetv2"
    if not package.is_dir():
        pytest.skip("nnunetv2 is not installed as a plain package here, so there is nothing to copy")
    source = tmp_path / "nnUNet"
    shutil.copytree(package, source / "nnunetv2")
    version = importlib.metadata.version("nnunetv2")
    (source / "setup.py").write_text(
        f"from setuptools import find_packages, setup\n"
        f"setup(name='nnunetv2', version='{version}', packages=find_packages(include=['nnunetv2', 'nnunetv2.*']))\n"
    )
    environment = Environment(tmp_path / "environment", without=("nnunetv2",))
    environment.install(str(wheel))
    environment.install("--editable", str(source))
    found = environment.look_up(EXPECTED)
    assert found["here"] == found["child"] == EXPECTED
    assert found["files"]["nnunetv2"] == str(source / "nnunetv2" / "__init__.py")


@pytest.mark.slow
def test_the_topological_loss_alone(repository: Path, tmp_path: Path) -> None:
    """Its wheel, with nothing but what it asks for: examples, a loss with its gradient, and our own results."""
    subprocess.run([sys.executable, repository / "packaging/topology/collect.py", tmp_path / "tree"], check=True)
    project = tomllib.loads((tmp_path / "tree/pyproject.toml").read_text())["project"]
    names = tuple(Requirement(need).name for need in project["dependencies"])
    environment = Environment(tmp_path / "environment", only=("pip", "setuptools", *names))
    environment.install(str(tmp_path / "tree"))
    done = subprocess.run([environment.python, "-P", "-c", ALONE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    *distances, last = done.stdout.splitlines()
    assert int(last.split()[0]) > 40 and str(environment.folder) in last
    pair = torch.rand(2, 12, 11, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for line, decimals in zip(distances, (1, 16), strict=True):
        first, second = (persistence_diagrams(volume.round(decimals=decimals))[1] for volume in pair)
        assert float(line) == pytest.approx(wasserstein_distance(first, second), rel=1e-10)
