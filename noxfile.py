#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox>=2025.2.9"]
# ///
"""Sessions for developers: ``nox`` for the usual checks, ``nox -l`` for all; each has an environment of its own."""

import re
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True

# What a released version must name: the repository, the site, where to report, and what has changed.
URLS = ("Repository", "Documentation", "Issues", "Changelog")
PYTHONS = ["3.11", "3.12", "3.13"]


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting and spelling, with the versions that pre-commit has."""
    extras = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]
    session.install(*(need for need in extras["dev"] if need.startswith(("ruff", "codespell"))))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")


@nox.session
def types(session: nox.Session) -> None:
    """Static types; mypy does not see through an editable install."""
    session.install(".[dev]")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Tests; ``nox -s tests -- -m slow`` for the slow ones."""
    session.install("-e", ".[dev]")
    session.run("pytest", *session.posargs)


@nox.session(name="tests-python", python=PYTHONS, default=False)
def tests_python(session: nox.Session) -> None:
    """Tests on every supported Python."""
    session.install(".[dev]")
    session.run("pytest", *session.posargs, env={"PYTHONSAFEPATH": "1"})


@nox.session(name="tests-minimum", python=PYTHONS[0], venv_backend="uv", default=False)
def tests_minimum(session: nox.Session) -> None:
    """Tests with the lowest versions that pyproject.toml allows for the libraries that it names."""
    session.install("--resolution", "lowest-direct", ".[dev]")
    session.run("pytest", *session.posargs, env={"PYTHONSAFEPATH": "1"})


@nox.session(name="tests-newest", python=PYTHONS[-1], venv_backend="uv", default=False)
def tests_newest(session: nox.Session) -> None:
    """Tests with the newest versions of everything, pre-releases included."""
    session.install("--upgrade", "--prerelease", "allow", ".[dev]")
    session.run("pytest", *session.posargs, env={"PYTHONSAFEPATH": "1"})


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Which lines the fast tests run."""
    session.install("-e", ".[dev]")
    session.run("pytest", "--cov", "--cov-report=term-missing:skip-covered", *session.posargs)


@nox.session(name="supply-chain", default=False)
def supply_chain(session: nox.Session) -> None:
    """Known vulnerabilities of what a user installs, its licences, and the bill of materials in sbom.json."""
    session.install(".")
    session.run("python", "docs/make_sbom.py", "--out", "sbom.json", env={"PYTHONSAFEPATH": "1"})
    session.install("pip", "pip-audit")
    frozen = str(session.run("python", "-m", "pip", "freeze", "--exclude", "nnunet-topomae", silent=True))
    file = Path(session.create_tmp()) / "frozen.txt"
    file.write_text(frozen, encoding="utf-8")
    # Strict: a package that the database does not know would else count as one without vulnerabilities.
    session.run("pip-audit", "--strict", "--no-deps", "--disable-pip", "-r", str(file), *session.posargs)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """The documentation as a site in site/; warnings are errors."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Source distribution and wheel in dist/."""
    session.install("build", "twine")
    session.run("python", "-m", "build")
    session.run("twine", "check", "--strict", "dist/*")


@nox.session(name="build-topology", default=False)
def build_topology(session: nox.Session) -> None:
    """The topological loss as a distribution of its own, topological-loss-3d, in dist/; runs it without nnU-Net."""
    session.install("build", "twine", "setuptools-scm")
    version = str(session.run("python", "-m", "setuptools_scm", silent=True)).split()[-1]
    for former in Path("dist").glob("topological_loss_3d-*"):
        former.unlink()
    tree = Path(session.create_tmp()) / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    session.run("python", "packaging/topology/collect.py", str(tree), version)
    session.run("python", "-m", "build", "--outdir", "dist", str(tree))
    session.run("twine", "check", "--strict", *map(str, Path("dist").glob("topological_loss_3d-*")))
    session.install("--force-reinstall", *map(str, Path("dist").glob("topological_loss_3d-*.whl")))
    session.run(
        "python", "-c", "import torch, topological_loss_3d as t; print(t.TopologicalLoss()(*torch.rand(2, 9, 9, 9)))"
    )


@nox.session(default=False)
def release(session: nox.Session) -> None:
    """Build the tagged version, check it, install it in fresh environments; `-- upload` publishes it on PyPI."""
    tag = str(session.run("git", "describe", "--exact-match", "--tags", "HEAD", external=True, silent=True)).strip()
    changed = str(session.run("git", "status", "--porcelain", external=True, silent=True)).strip()
    problems = [*release_problems(tag, Path.cwd()), *([f"not committed: {changed}"] if changed else [])]
    if problems:
        session.error("; ".join(problems))
    shutil.rmtree("dist", ignore_errors=True)
    build(session)
    for file in sorted(Path("dist").iterdir()):
        environment = Path(session.create_tmp()).resolve() / file.name
        shutil.rmtree(environment, ignore_errors=True)
        session.run("python", "-m", "venv", str(environment))
        programs = environment / "bin"
        session.run(str(programs / "pip"), "install", "--quiet", str(file), external=True)
        session.run(str(programs / "pip"), "check", external=True)
        with session.chdir(environment):
            session.run(str(programs / "nnunet-topomae"), "--version", external=True)
            session.run(str(programs / "nnunet-topomae"), "doctor", external=True)
    if "upload" in session.posargs:
        session.run("twine", "upload", *map(str, sorted(Path("dist").iterdir())))
    else:
        session.log(f"{tag} is ready in dist/: `nox -s release -- upload` publishes it")


def release_problems(tag: str, root: Path) -> list[str]:
    """What in a checkout is not that of a tag such as v1.2.3."""
    version = tag.removeprefix("v")
    texts = {
        "pyproject.toml": rf'^fallback_version = "{re.escape(version)}"',
        "CITATION.cff": rf"^version: {re.escape(version)}$",
        "CHANGELOG.md": rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$",
    }
    problems = [
        f"{name} is not of version {version}"
        for name, pattern in texts.items()
        if not re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    if not re.fullmatch(r"v\d+\.\d+\.\d+", tag):
        problems.append(f"the tag {tag} is not v1.2.3")
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    if not re.search(r"^date-released: \d{4}-\d\d-\d\d$", citation, re.MULTILINE):
        problems.append("CITATION.cff has no date-released")
    urls = nox.project.load_toml(root / "pyproject.toml").get("project", {}).get("urls", {})
    if lacking := [name for name in URLS if not str(urls.get(name, "")).startswith("https://")]:
        problems.append(f"[project.urls] in pyproject.toml lacks the address of: {', '.join(lacking)}")
    return problems


if __name__ == "__main__":
    nox.main()
