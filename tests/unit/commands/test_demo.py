"""What the demo asks for, refuses and writes before it trains; tests/process and tests/integration run it."""

import argparse
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunet_topomae.benchmark.spec import read_spec
from nnunet_topomae.benchmark.store import lock
from nnunet_topomae.commands import demo


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args([*arguments, "--device", "cpu"])


def test_the_file_is_a_benchmark_of_two_recipes(tmp_path: Path) -> None:
    spec = read_spec(demo.write_benchmark(tmp_path, "cpu"))
    assert [(recipe.name, recipe.title) for recipe in spec.recipes] == [("full", "fusion"), ("unetrpp", "from scratch")]
    assert (spec.out, spec.raw_folder()) == (tmp_path, tmp_path / "nnUNet_raw")
    assert spec.held_out and spec.embed_images and (spec.folds, spec.seeds) == ((0,), (0,))
    assert spec.settings["patch_size"] == [24, 32, 32]
    assert spec.settings["finetuning.mirror_axes"] == []
    assert int(spec.environment["nnUNet_n_proc_DA"]) >= 1


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    file = demo.write_benchmark(tmp_path, "cpu")
    edited = file.read_text().replace("epochs = 15", "epochs = 2")
    file.write_text(edited)
    assert demo.write_benchmark(tmp_path, "cpu").read_text() == edited
    with pytest.raises(ValueError, match="made for the device cpu, this run would take cuda"):
        demo.write_benchmark(tmp_path, "cuda")


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").touch()
    with pytest.raises(ValueError, match="holds no demo"):
        demo.run(options("--out", str(tmp_path)))
    assert [file.name for file in tmp_path.iterdir()] == ["precious.txt"]


def test_too_few_cases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 5 training cases, got 3"):
        demo.run(options("--out", str(tmp_path / "demo"), "--cases", "3"))
    assert not (tmp_path / "demo").exists()


def test_a_second_demo_in_one_folder_is_refused(tmp_path: Path) -> None:
    demo.write_benchmark(tmp_path, "cpu")
    with lock(tmp_path / ".lock"), pytest.raises(RuntimeError, match="another process works in"):
        demo.run(options("--out", str(tmp_path)))


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C works, also where a shell has started the tests in the background, which ignores it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("_ctrl_c")
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_demo_says_how_to_go_on_and_gives_back_the_handler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stop: int, code: int
) -> None:
    """A handler left behind is inherited by nnU-Net's forked pools, which can then wait for ever."""
    raw = tmp_path / "nnUNet_raw" / "Dataset777_TopoMAEPhantom"
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (raw / part).mkdir(parents=True)
        (raw / part / "case.nii.gz").touch()
    (raw / "dataset.json").write_text("{}")
    demo.write_benchmark(tmp_path, "cpu")
    monkeypatch.setattr("nnunet_topomae.datasets.phantom.write_phantom_dataset", lambda *_: raw)
    monkeypatch.setattr(
        "nnunet_topomae.benchmark.scheduler.LocalScheduler._start", lambda *_: signal.raise_signal(stop)
    )
    before = signal.getsignal(signal.SIGTERM)
    assert demo.run(options("--out", str(tmp_path))) == code
    assert "Run the same command again" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
