"""The tools of the repository: one version of ruff, and modules that can be imported one by one."""

import ast
import importlib
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

import nnunet_topomae

ROOT = Path(__file__).resolve().parents[2]


def module_names() -> list[str]:
    """Names of all modules of the package, the two root folders included."""
    names = []
    for folder in ("nnunet_topomae", "trainers", "plans"):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if folder == "nnunet_topomae" else ("nnunet_topomae", *parts)
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(names)


def test_pre_commit_has_the_ruff_of_the_dev_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (pinned,) = (need.removeprefix("ruff==") for need in extras["dev"] if need.startswith("ruff"))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"ruff-pre-commit\s+rev: v(\S+)", hooks) == [pinned]


@pytest.mark.parametrize("name", module_names())
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    public = getattr(module, "__all__", None)
    if public is None:
        assert module.__file__ is not None
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        kinds = (ast.FunctionDef, ast.ClassDef)
        public = [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    for item in public:
        assert getattr(module, item).__doc__, f"{name}.{item} has no docstring"


def shared_fixtures() -> set[str]:
    """What tests/conftest.py says: fixtures whose tests run in one process."""
    (value,) = re.findall(r"^SHARED_FIXTURES = (\(.*\))$", (ROOT / "tests" / "conftest.py").read_text(), re.MULTILINE)
    return set(ast.literal_eval(value))


def test_costly_fixtures_are_made_once() -> None:
    """Fixtures of a module or session are shared, need a shared one, or are cheap to make in every process."""
    wanted, found = {}, set()
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                decorators = " ".join(map(ast.unparse, node.decorator_list))
                found |= {node.name} if "fixture" in decorators else set()
                if "scope=" in decorators and "autouse" not in decorators:
                    wanted[node.name] = {argument.arg for argument in node.args.args}
    shared = shared_fixtures()
    assert shared <= found, "fixtures that are no more"
    covered = shared | {"fork", "repository", "make_bench"}
    for _ in wanted:
        covered |= {name for name, needs in wanted.items() if needs & (covered - {"repository"})}
    assert set(wanted) <= covered, "add them to SHARED_FIXTURES in tests/conftest.py"


def test_the_package_has_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", nnunet_topomae.__version__)


def test_the_bill_of_materials_lists_what_is_installed_with_its_licences() -> None:
    specification = importlib.util.spec_from_file_location("make_sbom", ROOT / "docs" / "make_sbom.py")
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    listed = {package.name: package for package in script.packages()}
    assert {"nnunet-topomae", "torch", "nnunetv2", "connected-components-3d"} <= set(listed)
    assert not {"pytest", "monai"} & set(listed), "extras are not needed"
    assert listed["nnunet-topomae"].licence == "Apache-2.0"
    assert {name for name, package in listed.items() if package.licence == script.UNKNOWN} <= {"cuda-toolkit"}
    bill = script.bill(list(listed.values()))
    assert {part["purl"] for part in bill["components"]} == {f"pkg:pypi/{p.name}@{p.version}" for p in listed.values()}
