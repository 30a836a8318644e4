"""Hooks of `mkdocs build`: links to files of the repository, and the help texts of all commands."""

import argparse
import importlib
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

from nnunet_topomae.cli import COMMANDS

HELP_MARKER = "<!-- help of all commands -->"
_LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#\s]*)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Complete one page.

    Args:
        markdown: source of the page.
        page: mkdocs' page.
        config: mkdocs' configuration.

    Raises:
        PluginError: a link leads to a file that does not exist.
    """
    folder, docs = Path(page.file.abs_src_path).parent, Path(config["docs_dir"])

    def repository_link(found: re.Match[str]) -> str:
        target = (folder / found[2]).resolve()
        if target.is_relative_to(docs):
            return found[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_path} links to {found[2]}, which does not exist")
        if not config["repo_url"]:
            return found[1]  # a site that does not know its repository names the file
        repository = config["repo_url"].rstrip("/")
        return f"[{found[1]}]({repository}/blob/main/{target.relative_to(docs.parent)}{found[3] or ''})"

    return _LINK.sub(repository_link, markdown).replace(HELP_MARKER, command_help())


def command_help() -> str:
    """The help texts of all commands, as Markdown sections."""
    return "\n".join(_section(name) for name in COMMANDS)


def _section(name: str) -> str:
    parser = argparse.ArgumentParser(prog=f"nnunet-topomae {name}", add_help=False, formatter_class=_wide)
    importlib.import_module(COMMANDS[name].module).add_arguments(parser)
    text = parser.format_help()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                sub.formatter_class = _wide
                text += f"\n{sub.format_help()}"
    return f"## {name}\n\n{COMMANDS[name].help[0].upper()}{COMMANDS[name].help[1:]}.\n\n```text\n{text}```\n"


def _wide(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, width=100)
