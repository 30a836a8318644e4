"""Compiled kernels are renewed when a file of the solver changes, and loaded without the compiler."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_topomae.topology.solver import kernels

# The caller is in one file, the callee in another, which numba's own cache does not look at.
CALLEE = """
from solver_copy.kernels import kernel

@kernel
def callee(x):
    return x + 1.0
"""
CALLER = """
from solver_copy.callee import callee
from solver_copy.kernels import kernel

@kernel
def caller(x):
    return 10.0 * callee(x)
"""
PROGRAM = """
from solver_copy import caller
print(caller.__file__, caller.caller(1.0), sum(caller.caller.stats.cache_hits.values()))
"""

LOAD_THEN_COMPILE = """
import sys
from solver_copy import caller
caller.caller(1.0)
loaded = "numba.np.arraymath" not in sys.modules
print(loaded, caller.caller(1), caller.caller(2.0), sum(caller.caller.stats.cache_hits.values()))
"""


@pytest.mark.slow
def test_an_edited_callee_is_seen(tmp_path: Path) -> None:
    file = str(write_package(tmp_path) / "caller.py")
    assert run(tmp_path, PROGRAM, CALLEE) == [file, "20.0", "0"]
    assert run(tmp_path, PROGRAM, CALLEE) == [file, "20.0", "1"]
    assert run(tmp_path, PROGRAM, CALLEE.replace("1.0", "2.0")) == [file, "30.0", "0"]
    assert run(tmp_path, PROGRAM, CALLEE) == [file, "20.0", "1"]


@pytest.mark.slow
def test_loading_imports_no_part_of_the_compiler(tmp_path: Path) -> None:
    """Another type of the argument is compiled later on in the same process all the same."""
    write_package(tmp_path)
    assert run(tmp_path, LOAD_THEN_COMPILE, CALLEE) == ["False", "20.0", "30.0", "0"]
    assert run(tmp_path, LOAD_THEN_COMPILE.replace("caller.caller(1),", "0,"), CALLEE) == ["True", "0", "30.0", "1"]
    shutil.rmtree(tmp_path / "solver_copy" / "__pycache__")
    run(tmp_path, PROGRAM, CALLEE)
    assert run(tmp_path, LOAD_THEN_COMPILE, CALLEE) == ["True", "20.0", "30.0", "1"]


def write_package(folder: Path) -> Path:
    """A package with the files of the solver and a kernel that calls another."""
    package = folder / "solver_copy"
    shutil.copytree(Path(kernels.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "caller.py").write_text(CALLER)
    return package


def run(folder: Path, program: str, callee: str) -> list[str]:
    """Words that a program prints in a process of its own.

    Python may not keep bytecode: it would take two files of the same size, written in the same second, for one.
    """
    (folder / "solver_copy" / "callee.py").write_text(callee)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()
