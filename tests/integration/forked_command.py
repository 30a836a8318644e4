"""What a forked process runs in place of an installed program; a file of its own, so that the process can import it."""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path


def call(argv: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """Do what an installed program does, and leave with its code.

    Args:
        argv: the program's name and its arguments.
        environment: variables to set.
        log: the file that both output streams go to.
    """
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(environment)
    sys.argv = list(argv)
    (entry,) = entry_points(group="console_scripts", name=argv[0])
    sys.exit(entry.load()())
