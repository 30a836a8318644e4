"""The demo on stand-ins for nnU-Net's commands: refused, stopped, killed, failing and continued."""

import json
import os
import signal

import pytest

from nnunet_topomae.benchmark.jobs import make_jobs
from nnunet_topomae.benchmark.spec import read_spec
from nnunet_topomae.benchmark.store import JobFolder
from nnunet_topomae.commands.demo import HELD_OUT_CASES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_demo_is_stopped_killed_and_continued(bench):
    out = bench.root / "demo"
    argv = [*bench.program, "demo", "--out", str(out), "--cases", "5", "--device", "cpu"]

    def folder(kind, recipe):
        spec = read_spec(out / "demo.toml")
        return JobFolder.of(next(j for j in make_jobs(spec) if (j.kind, j.recipe) == (kind, recipe)), spec)

    def starts(kind, recipe):
        return (folder(kind, recipe).fold / "starts.txt").read_text().split()

    bench.behave(TopoMAEPretrainer={"seconds": 1.0, "worker": True})
    first = bench.start_argv(argv)
    bench.wait_for(lambda: (out / "nnUNet_raw" / "Dataset777_TopoMAEPhantom").is_dir(), 180)
    bench.wait_for(lambda: (folder("pretrain", "full").fold / "checkpoint_latest.pth").is_file(), 180)
    assert "another process works in" in bench.call_argv(argv, code=2)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 143
    assert not bench.processes(folder("pretrain", "full").path)

    bench.behave(TopoMAEFusionTrainer={"seconds": 0.5})
    second = bench.start_argv(argv)
    bench.wait_for(lambda: (folder("train", "full").fold / "checkpoint_latest.pth").is_file(), 180)
    os.killpg(second.pid, signal.SIGKILL)
    second.wait()

    bench.behave(predict={"fails": True})
    failed = bench.call_argv(argv, code=1)
    assert "out of memory in prediction" in failed and "20 %" not in failed
    assert "Run the same command again to continue from there." in failed
    assert starts("pretrain", "full") == ["anew", "--c"]

    bench.behave()
    printed = bench.call_argv(argv)
    assert "from scratch" in printed and "minutes of work in total" in printed
    assert starts("train", "full") == ["anew"]  # the supervisor outlived the killed demo, which then waited for it
    (table,) = json.loads((out / "report" / "results.json").read_text())["tables"]
    assert set(table["rows"]) == {"full", "unetrpp"} and len(table["cases"]) == HELD_OUT_CASES
    done = {path: path.read_text() for path in out.glob("runs/*/*/done.json")}
    assert len(done) == 8
    bench.call_argv(argv)
    assert {path: path.read_text() for path in out.glob("runs/*/*/done.json")} == done
