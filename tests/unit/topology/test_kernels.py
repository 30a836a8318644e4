"""Compiled kernels are renewed when a file of the solver changes."""

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


@pytest.mark.slow
def test_an_edited_callee_is_seen(tmp_path: Path) -> None:
    package = tmp_path / "solver_copy"
    shutil.copytree(Path(kernels.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "caller.py").write_text(CALLER)

    def run(callee: str) -> list[str]:
        (package / "callee.py").write_text(callee)
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    file = str(package / "caller.py")
    assert run(CALLEE) == [file, "20.0", "0"]
    assert run(CALLEE) == [file, "20.0", "1"]
    assert run(CALLEE.replace("1.0", "2.0")) == [file, "30.0", "0"]
    assert run(CALLEE) == [file, "20.0", "1"]
