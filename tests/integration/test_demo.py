"""The demo at its smallest size, through nnU-Net's own commands."""

import argparse
import json
import signal
from importlib.metadata import PackageNotFoundError, version

import pytest

from nnunet_topomae.benchmark.layout import FUSION, SCRATCH, DemoFolders, DemoSettings
from nnunet_topomae.commands import demo
from nnunet_topomae.nnunet.names import PRETRAINER

SMALLEST = DemoSettings(
    cases_train=5,
    cases_test=2,
    patch_size=(16, 32, 48),
    pretraining_epochs=2,
    finetuning_epochs=2,
    iterations_per_epoch=2,
    validation_iterations=1,
    dims=(8, 8, 16, 16),
)
STEPS = (
    "phantoms",
    "preprocess",
    "plans",
    "pretrain",
    "finetune",
    "scratch",
    "predict_fusion",
    "predict_scratch",
    "score",
)


def installed():
    try:
        return bool(version("nnunet-topomae"))
    except PackageNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="nnU-Net's commands find the trainers of an installed package only")
def test_demo_runs_resumes_and_reports(tmp_path, capsys):
    out = tmp_path / "demo"
    results = demo.run_demo(out, SMALLEST, "cpu")
    folders = DemoFolders(out)

    assert [step["name"] for step in results["steps"]] == list(STEPS)
    assert json.loads((out / "results.json").read_text()) == results
    for model, trainer in (("fusion", FUSION), ("scratch", SCRATCH)):
        found = results["models"][model]
        assert found["trainer"] == trainer
        assert list(found["mean"]) == ["organ", "shell", "ring", "vessel"]
        assert len(found["cases"]) == SMALLEST.cases_test
        assert all(0 <= score["dice"] <= 1 for case in found["cases"].values() for score in case.values())
    for branch in ("vit", "unetrpp"):
        assert results["reconstruction"]["mean"][branch]["key_point_error_mm"] > 0
    for trainer, epochs in ((PRETRAINER, 2), (FUSION, 2), (SCRATCH, 2)):
        assert len((folders.fold(trainer) / "metrics.jsonl").read_text().splitlines()) == epochs

    page = (out / "report.html").read_text()
    assert page.count("<img ") >= 8 and len(page) < 4_000_000
    assert "key-point error" in page and "nnUNetv2_train 777 3d_fullres 0 -tr TopoMAEPretrainer" in page

    checkpoint = folders.fold(FUSION) / "checkpoint_final.pth"
    written = checkpoint.stat().st_mtime_ns
    again = demo.run_demo(out, SMALLEST, "cpu")
    assert all(step["skipped"] for step in again["steps"])
    assert checkpoint.stat().st_mtime_ns == written
    assert again["models"] == results["models"]

    demo.print_summary(results, out)
    assert "from scratch" in capsys.readouterr().out


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "precious.txt").touch()
    with pytest.raises(ValueError, match="holds no demo"):
        demo.run_demo(tmp_path, SMALLEST, "cpu")
    assert [file.name for file in tmp_path.iterdir()] == ["precious.txt"]


def test_too_few_cases_are_refused(tmp_path):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    with pytest.raises(ValueError, match="at least 5 training cases, got 3"):
        demo.run(parser.parse_args(["--out", str(tmp_path / "demo"), "--cases", "3", "--device", "cpu"]))
    assert not (tmp_path / "demo").exists()


def test_the_demo_gives_back_the_handler_of_sigterm(tmp_path):
    """A handler left behind is inherited by nnU-Net's forked pools, which can then wait for ever."""
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "precious.txt").touch()
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    with pytest.raises(ValueError, match="holds no demo"):
        demo.run(parser.parse_args(["--out", str(tmp_path), "--device", "cpu"]))
    assert signal.getsignal(signal.SIGTERM) is before
