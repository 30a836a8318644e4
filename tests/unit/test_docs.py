"""The documentation is true: links resolve, examples run, commands exist, citations are listed."""

import argparse
import ast
import doctest
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from nnunet_topomae import topology

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
# Written by `benchmark report`, with one line per row whatever its length.
GENERATED = set((DOCS / "results").glob("*/report.md"))
PROSE = [page for page in PAGES if page not in GENERATED]
NUMERIC = ("topology", "evaluation", "losses", "geometry.py", "masking.py", "vectors.py")
NUMERIC += ("data/transforms.py", "training/resample.py")
PACKAGE = ROOT / "nnunet_topomae"
LINE_LENGTH = 120

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CITATION = re.compile(r"\b([A-Z][\wéè]+(?: et al\.| and [A-Z]\w+)?),? \(?((?:19|20)\d\d)\b")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in _BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def _slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site make them."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


def _numeric_files() -> list[Path]:
    chosen = [PACKAGE / part for part in NUMERIC]
    return [file for path in chosen for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]


def _documented(file: Path) -> Iterator[tuple[ast.AST, str]]:
    """Every definition of a file with its docstring."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield node, ast.get_docstring(node) or ""


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_resolve(page: Path) -> None:
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in _slugs(file), f"{target} has no heading #{anchor}"


@pytest.mark.parametrize("page", [*PROSE, ROOT / "CHANGELOG.md"], ids=_name)
def test_prose_is_wrapped(page: Path) -> None:
    """Tables and code may be wider; a line that is one long link cannot be broken."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    wide = [line for line in text.splitlines() if len(line) > LINE_LENGTH and " " in line.strip("-*> ")]
    assert not [line for line in wide if not line.startswith(("|", "!["))]


@pytest.mark.parametrize("page", [page for page in PAGES if _blocks(page, "python")], ids=_name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after the other, as a reader would run them."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "example"}
    for block in _blocks(page, "python"):
        exec(compile(block, str(page), "exec"), namespace)


def test_blocks_of_settings_can_be_read() -> None:
    """JSON blocks may be parts of a file, so they get the braces around them."""
    tables = [tomllib.loads(block) for page in PAGES for block in _blocks(page, "toml")]
    tables += [json.loads(f"{{{block}}}") for page in PAGES for block in _blocks(page, "json")]
    assert tables and all(tables)


class Accepted(Exception):
    """The parser took the arguments; the command must not start."""


def _commands(page: Path) -> Iterator[list[str]]:
    """Our and nnU-Net's commands in a page's shell blocks, with placeholders filled in."""
    for block in _blocks(page, "bash"):
        for line in re.split(r"&&|\n", block.replace("\\\n", " ")):
            words = shlex.split(line.replace("$fold", "0"), comments=True)
            if "torchrun" in words and "--no-python" in words:  # it starts the command that follows
                words = words[words.index("--no-python") + 1 :]
            if words and re.fullmatch(r"(.*/)?(nnunet-topomae|nnUNetv2_\w+)", words[0]):
                cut = next((index for index, word in enumerate(words) if word in (">", "|")), len(words))
                yield [words[0].rpartition("/")[2], *words[1:cut]]


@pytest.mark.parametrize("page", [page for page in PAGES if list(_commands(page))], ids=_name)
def test_commands_are_accepted(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option in a shell block exists. The commands are parsed by their own parsers, and not run."""
    parse: Callable[..., argparse.Namespace] = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parse(parser, *args, **kwargs)
        raise Accepted

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    scripts = {script.name: script for script in entry_points(group="console_scripts")}
    for words in _commands(page):
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(Accepted):
            scripts[words[0]].load()()


@pytest.mark.parametrize("file", _numeric_files(), ids=_name)
def test_examples_of_docstrings_run(file: Path) -> None:
    """Read from the source: the type checker of the tests wraps functions, and doctest then passes over them."""
    examples = [(node, text) for node, text in _documented(file) if ">>>" in text]
    module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts)) if examples else None
    for node, text in examples:
        name = getattr(node, "name", file.stem)
        test = doctest.DocTestParser().get_doctest(text, dict(vars(module)), name, str(file), 0)
        assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0, name


@pytest.mark.parametrize("name", topology.__all__)
def test_public_names_of_the_topological_library_are_documented(name: str) -> None:
    """`test_examples_of_docstrings_run` runs the examples."""
    sections = ["Example:"] if "egion" in name else ["References:", "Example:"]  # a region needs no theory
    assert re.findall(r"^(?:References|Example):$", inspect.getdoc(getattr(topology, name)) or "", re.M) == sections


def _share_with_args(files: list[Path], parameters: int) -> tuple[int, int]:
    """Public documented functions with this many parameters or more: those that have `Args`, and all of them."""
    counts = [0, 0]
    for file in files:
        for node, text in _documented(file):
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or not text:
                continue
            names = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)} - {"self", "cls"}
            if len(names) >= parameters:
                counts[0] += "Args:" in text
                counts[1] += 1
    return counts[0], counts[1]


def test_parameters_are_explained() -> None:
    """In the numeric rooms and in the whole package; one parameter with a telling name may need no words."""
    package = [file for folder in (PACKAGE, ROOT / "trainers", ROOT / "plans") for file in sorted(folder.rglob("*.py"))]
    for files, parameters, share in ((_numeric_files(), 1, 0.8), (package, 1, 0.6), (package, 3, 0.8)):
        explained, total = _share_with_args(files, parameters)
        assert explained >= share * total, f"{explained} of {total} functions with {parameters} parameters or more"


def test_citations_are_listed() -> None:
    """By author and year; a number in brackets leads nowhere."""
    listed = (DOCS / "references.md").read_text(encoding="utf-8")
    sources = [*PROSE, *PACKAGE.rglob("*.py"), *(ROOT / "trainers").glob("*.py"), *(ROOT / "plans").glob("*.py")]
    for source in sources:
        if source.suffix == ".py":
            text = "\n".join(docstring for _, docstring in _documented(source))
        else:
            text = _BLOCK.sub("", source.read_text(encoding="utf-8"))
        text = " ".join(text.split())
        assert not re.search(r"[a-z,.] \[\d+\][ .,]", text), f"{source} cites by number"
        for author, year in _CITATION.findall(text):
            if "et al" in author or " and " in author:
                assert f"{author} {year}" in listed, f"{source} cites {author} {year}"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install -e '.[docs]'")
def test_site_builds(tmp_path: Path) -> None:
    """Warnings are errors (`strict` in mkdocs.yml)."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    page = (tmp_path / "site/reference/commands/index.html").read_text(encoding="utf-8")
    assert "-gpu_memory_target" in page, "the help of the commands is not on its page"
