"""What an installation consists of: licences as a table, and a software bill of materials (SBOM) in CycloneDX.

    python docs/make_sbom.py                    # the table
    python docs/make_sbom.py --out sbom.json    # the table, and the bill

Lists the packages that nnunet-topomae needs, directly or not, as they are installed in this environment. Licences are
what the packages' metadata declare. `nox -s supply-chain` does this in a fresh environment.
"""

import argparse
import json
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT_PACKAGE = "nnunet-topomae"
UNKNOWN = "not declared"
# Longer texts are the licence itself, not its name.
_LONGEST_NAME = 60


class Package(NamedTuple):
    """One installed package: its name, version and declared licence."""

    name: str
    version: str
    licence: str


def packages(root: str = ROOT_PACKAGE) -> list[Package]:
    """A package and everything that it needs without extras, by name.

    Raises:
        PackageNotFoundError: the root is not installed.
    """
    found: dict[str, Package] = {}
    waiting = [root]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            if name == canonicalize_name(root):
                raise
            continue  # named for another platform
        found[name] = Package(name, installed.version, licence(installed))
        waiting += needs(installed)
    return [found[name] for name in sorted(found)]


def needs(installed: Distribution) -> Iterator[str]:
    """Names of what a package needs on this platform, without extras."""
    for line in installed.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def licence(installed: Distribution) -> str:
    """The licence that a package's metadata declare: an expression, classifiers, or a name."""
    metadata: Any = installed.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier", ()) if "License ::" in line]
    named = [name for name in classifiers if name != "OSI Approved"]
    free = str(metadata.get("License") or "").strip()
    return ", ".join(named) or (free.split("\n")[0] if 0 < len(free.split("\n")[0]) <= _LONGEST_NAME else UNKNOWN)


def bill(listed: list[Package]) -> dict[str, Any]:
    """The packages as a CycloneDX 1.5 document."""
    components = [
        {
            "type": "library",
            "name": package.name,
            "version": package.version,
            "purl": f"pkg:pypi/{package.name}@{package.version}",
            "licenses": [{"license": {"name": package.licence}}],
        }
        for package in listed
    ]
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}


def main() -> None:
    """Print the table, and write the bill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the bill, as JSON")
    args = parser.parse_args()
    listed = packages()
    print("| package | version | licence |\n|---|---|---|")
    for package in listed:
        print(f"| {package.name} | {package.version} | {package.licence} |")
    if args.out is not None:
        args.out.write_text(json.dumps(bill(listed), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
