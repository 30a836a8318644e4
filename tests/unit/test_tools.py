"""The tools of the repository: one version of each linter, and modules that can be imported one by one."""

import ast
import importlib
import importlib.util
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

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


@pytest.mark.parametrize(("tool", "repository"), [("ruff", "ruff-pre-commit"), ("codespell", "codespell")])
def test_pre_commit_has_the_linters_of_the_dev_extra(tool: str, repository: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (pinned,) = (need.removeprefix(f"{tool}==") for need in extras["dev"] if need.startswith(tool))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(rf"/{repository}\s+rev: v(\S+)", hooks) == [pinned]


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
    covered = shared | {"fork", "repository", "make_bench", "tiny_plans"}
    for _ in wanted:
        covered |= {name for name, needs in wanted.items() if needs & (covered - {"repository", "tiny_plans"})}
    assert set(wanted) <= covered, "add them to SHARED_FIXTURES in tests/conftest.py"


def test_the_citation_names_the_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    fallback = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools_scm"]["fallback_version"]
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [fallback]


def test_the_version_is_that_of_the_installation() -> None:
    assert nnunet_topomae.__version__ == str(Version(version("nnunet-topomae")))


def test_a_release_is_what_its_tag_says(tmp_path: Path) -> None:
    noxfile = pytest.importorskip("nox") and runpy.run_path(str(ROOT / "noxfile.py"))
    problems = noxfile["release_problems"]
    names = ("Repository", "Documentation", "Issues", "Changelog")
    urls = "".join(f'{name} = "https://example.org"\n' for name in names)
    texts = {
        "CITATION.cff": "version: 1.2.3\ndate-released: 2030-01-31\n",
        "CHANGELOG.md": "## [Unreleased]\n\n## [1.2.3] - 2030-01-31\n",
        "pyproject.toml": '[tool.setuptools_scm]\nfallback_version = "1.2.3"  # the same\n[project.urls]\n' + urls,
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert problems("v1.2.3", tmp_path) == []
    assert problems("1.2.3", tmp_path) == ["the tag 1.2.3 is not v1.2.3"]
    assert len(problems("v1.2.4", tmp_path)) == 3
    for name in names:
        (tmp_path / "pyproject.toml").write_text(texts["pyproject.toml"].replace(f"{name} =", "Other ="))
        message = f"[project.urls] in pyproject.toml lacks the address of: {name}"
        assert problems("v1.2.3", tmp_path) == [message]
    (tmp_path / "pyproject.toml").write_text(texts["pyproject.toml"])
    for name in texts:
        (tmp_path / name).write_text("")
        assert problems("v1.2.3", tmp_path), name
        (tmp_path / name).write_text(texts[name])


@pytest.mark.parametrize("name", ["Dockerfile", "nnunet-topomae.def"])
def test_containers_copy_all_that_an_installation_needs(name: str) -> None:
    text = (ROOT / "containers" / name).read_text()
    copied = {
        file
        for line in re.findall(r"^(?:COPY|   ) ((?:[\w.]+ )+)/source/\S*$", text, re.MULTILINE)
        for file in line.split()
    }
    needed = {path.name for path in ROOT.glob("*.py")} - {"noxfile.py"}
    assert copied == needed | {"pyproject.toml", "README.md", "LICENSE", "nnunet_topomae", "trainers", "plans"}
    kept = (ROOT / ".dockerignore").read_text().split()
    assert {f"!{file}" for file in copied} | {"*", "**/__pycache__"} == set(kept)


@pytest.mark.slow
@pytest.mark.parametrize("builder", ["docker", "podman", "apptainer"])
def test_containers_work(builder: str) -> None:
    found = shutil.which(builder)
    if found is None or subprocess.run([found, "version"], capture_output=True).returncode:
        pytest.skip(f"{builder} cannot build images here")
    done = subprocess.run([ROOT / "containers" / "test", builder], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


# In a process of its own: setuptools refuses to be imported after distutils.
ABSOLUTE_LINKS = """
import runpy, sys
text, *where = sys.argv[1:]
sys.stdout.write(runpy.run_path("setup.py")["absolute_links"](text, *where))
"""


def test_links_of_the_readme_lead_to_the_repository() -> None:
    pytest.importorskip("setuptools_scm")

    def absolute_links(*arguments: str) -> str:
        argv = [sys.executable, "-c", ABSOLUTE_LINKS, *arguments]
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    text = absolute_links((ROOT / "README.md").read_text(), "https://example.org/us/it/", "v1.2.3")
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    assert "](https://example.org/us/it/raw/v1.2.3/docs/images/demo.png)" in text
    assert "](https://example.org/us/it/blob/v1.2.3/docs/architecture.md#how-nnu-net-finds-the-classes)" in text
    assert "](https://github.com/MIC-DKFZ/nnUNet)" in text
    assert absolute_links("[#x](#x)", "https://a", "b") == "[#x](#x)"


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
