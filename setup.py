"""What pyproject.toml cannot say: the two folders at the repository root, and links of the README that work on PyPI."""

import os
import re
import tomllib
from pathlib import Path

from setuptools import find_packages, setup
from setuptools_scm import get_version

# Listing the files of somebody else's checkout is no reason to fail: the version then comes from pyproject.toml.
os.environ.setdefault("SETUPTOOLS_SCM_IGNORE_DUBIOUS_OWNER", "1")

ROOT = Path(__file__).resolve().parent
ROOT_FOLDERS = ("trainers", "plans")


def readme() -> str:
    """README.md; its relative links lead to the repository, where pyproject.toml names one."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    repository = project["project"]["urls"].get("Repository")
    if repository is None:
        return text
    version = get_version(root=str(ROOT), **project["tool"]["setuptools_scm"])
    revision = f"v{version}" if re.fullmatch(r"\d+\.\d+\.\d+", version) else "HEAD"
    return absolute_links(text, repository, revision)


def absolute_links(text: str, repository: str, revision: str) -> str:
    """The same Markdown text with links that also work outside of the repository."""

    def absolute(link: re.Match[str]) -> str:
        image, label, target = link.groups()
        kind = "raw" if image else "blob"
        return f"{image}[{label}]({repository.rstrip('/')}/{kind}/{revision}/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)]+)\)", absolute, text)


if __name__ == "__main__":
    setup(
        py_modules=["nnunet_topomae_start"],
        packages=find_packages(include=["nnunet_topomae", "nnunet_topomae.*"])
        + [f"nnunet_topomae.{folder}" for folder in ROOT_FOLDERS],
        package_dir={f"nnunet_topomae.{folder}": folder for folder in ROOT_FOLDERS},
        long_description=readme(),
        long_description_content_type="text/markdown",
    )
