"""The command's dispatcher: cheap help, lazy imports, clear errors."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from nnunet_topomae import __version__, cli


def fake_command(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> list[int]:
    seen: list[int] = []

    def run(args: object) -> int:
        seen.append(args.number)  # type: ignore[attr-defined]
        if error is not None:
            raise error
        return 7

    module = SimpleNamespace(
        add_arguments=lambda parser: parser.add_argument("--number", type=int, required=True), run=run
    )
    monkeypatch.setitem(sys.modules, "a_fake_command", module)  # type: ignore[arg-type]
    monkeypatch.setitem(cli.COMMANDS, "demo", cli.Command("a_fake_command", "fake"))
    return seen


def test_passes_arguments_on_and_returns_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fake_command(monkeypatch)
    assert cli.main(["demo", "--number", "3"]) == 7
    assert seen == [3]


@pytest.mark.parametrize("error", [ValueError("bad plan"), FileNotFoundError("no file"), RuntimeError("no library")])
def test_user_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    fake_command(monkeypatch, error)
    assert cli.main(["demo", "--number", "3"]) == cli.USER_ERROR
    assert capsys.readouterr().err == f"error: {error}\n"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_command(monkeypatch, ValueError("bad plan"))
    with pytest.raises(ValueError, match="bad plan"):
        cli.main(["demo", "--number", "3", "--debug"])


def test_programming_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_command(monkeypatch, KeyError("bug"))
    with pytest.raises(KeyError):
        cli.main(["demo", "--number", "3"])


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["demo"], ["demo", "--number", "three"]])
def test_wrong_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    fake_command(monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: nnunet-topomae" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"nnunet-topomae {__version__}\n"


def test_help_lists_every_command_without_heavy_imports() -> None:
    code = (
        "import sys; from nnunet_topomae.cli import main\n"
        "try: main(['-h'])\n"
        "except SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'numpy', 'nnunetv2', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: []" in result.stdout
    for name in cli.COMMANDS:
        assert f"    {name}" in result.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "-h"])
    assert stopped.value.code == 0
    assert f"usage: nnunet-topomae {name}" in capsys.readouterr().out
