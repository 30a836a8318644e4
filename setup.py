"""Map the two folders at the repository root into the package; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

ROOT_FOLDERS = ("trainers", "plans")

setup(
    py_modules=["nnunet_topomae_start"],
    packages=find_packages(include=["nnunet_topomae", "nnunet_topomae.*"])
    + [f"nnunet_topomae.{folder}" for folder in ROOT_FOLDERS],
    package_dir={f"nnunet_topomae.{folder}": folder for folder in ROOT_FOLDERS},
)
