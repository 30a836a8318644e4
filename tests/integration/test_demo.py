"""The demo at its smallest size, through nnU-Net's own commands."""

import argparse
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from nnunet_topomae.benchmark.jobs import make_jobs
from nnunet_topomae.benchmark.spec import read_spec
from nnunet_topomae.benchmark.store import JobFolder
from nnunet_topomae.cli import main
from nnunet_topomae.commands import demo

SMALLEST = (
    ("patch_size = [24, 32, 32]", "patch_size = [16, 32, 48]"),
    ("epochs = 4\n", "epochs = 2\n"),
    ("epochs = 5\n", "epochs = 2\n"),
    ("iterations_per_epoch = 34", "iterations_per_epoch = 2"),
    ("iterations_per_epoch = 48", "iterations_per_epoch = 2"),
    ("validation_iterations = 2", "validation_iterations = 1"),
    ("dims = [16, 32, 64, 128]", "dims = [8, 8, 16, 16]"),
)


def installed() -> bool:
    try:
        return bool(version("nnunet-topomae"))
    except PackageNotFoundError:
        return False


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="nnU-Net's commands find the trainers of an installed package only")
def test_demo_runs_resumes_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    file = demo.write_benchmark(out, "cpu")
    text = file.read_text()
    for old, new in SMALLEST:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    arguments = options("--out", str(out), "--device", "cpu", "--cases", "5")
    assert demo.run(arguments) == 0
    printed = capsys.readouterr().out
    assert "from scratch" in printed and "minutes of work in total" in printed

    spec = read_spec(file)
    jobs = make_jobs(spec)
    assert [job.kind for job in jobs] == ["plan", "pretrain", "train", "predict", "score", "train", "predict", "score"]
    results = json.loads((out / "report" / "results.json").read_text())
    (table,) = results["tables"]
    for row in (table["rows"]["full"], table["rows"]["unetrpp"]):
        assert list(row["structures"]) == ["organ", "shell", "ring", "vessel"]
        assert sorted(row["by_case"]) == [f"phantom_test_{number:03d}" for number in range(demo.HELD_OUT_CASES)]
        assert 0 <= row["mean"]["dice"] <= 1
    for job in jobs:
        if job.epochs:
            assert len((JobFolder.of(job, spec).fold / "metrics.jsonl").read_text().splitlines()) == 2
    page = (out / "report" / "report.html").read_text()
    assert page.count("<img ") == 3 + 4 + 1 + 4 and len(page) < 4_000_000
    assert "key-point error" in page and "nnUNetv2_train 777 3d_fullres 0 -tr TopoMAEPretrainer" in page

    checkpoint = JobFolder.of(jobs[2], spec).fold / "checkpoint_final.pth"
    written = checkpoint.stat().st_mtime_ns
    assert demo.run(arguments) == 0
    assert checkpoint.stat().st_mtime_ns == written
    assert json.loads((out / "report" / "results.json").read_text())["tables"] == results["tables"]
    # The notebook, in the folder of this demo.
    monkeypatch.setenv("TOPOMAE_DEMO", str(out))
    monkeypatch.setenv("TOPOMAE_DEMO_CASES", "5")
    capsys.readouterr()
    names: dict[str, Any] = {}
    for cell in json.loads((repository / "docs" / "demo.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "docs/demo.ipynb", "exec"), names)
    printed = capsys.readouterr().out
    assert "full     " in printed and "all done" in printed and "'mse_vit'" in printed
    assert names["figure"].axes and checkpoint.stat().st_mtime_ns == written
    # The file is a benchmark like any other.
    assert main(["benchmark", "report", "-b", str(file), "-o", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "scores.csv").read_text() == (out / "report" / "scores.csv").read_text()
