"""A whole benchmark on stand-ins for nnU-Net's commands: killed, failing, changed, watched and reported."""

import csv
import html
import json
import os
import pty
import re
import signal
import subprocess
import termios
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from nnunet_topomae.nnunet.process import last_lines

PRETRAIN, TRAIN, PREDICT, SCORE = (
    f"Dataset005__full__fold0__seed0__{kind}" for kind in ("pretrain", "train", "predict", "score")
)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_from_nothing_to_the_report(finished):
    done = finished.done()
    assert len(done) == len(finished.jobs) == 2 + 2 * 2 * 2
    # Again: nothing is done again.
    finished.call("run")
    assert finished.done() == done
    files = {path.name for path in finished.reported}
    assert {"report.html", "report.md", "tables.tex", "scores.csv", "results.json"} <= files
    folder = finished.spec.out / "report"
    (table,) = json.loads((folder / "results.json").read_text())["tables"]
    assert set(table["rows"]) == {"unetrpp", "nnunet"}
    assert len(table["cases"]) == 2
    assert table["rows"]["nnunet"]["macs"] == 2.5e9
    assert table["rows"]["nnunet"]["parameters"] == 12
    assert table["rows"]["nnunet"]["cost"]["gpu_bytes"] is None
    contrast = next(one for one in table["contrasts"] if (one["metric"], one["recipe"]) == ("dice", "nnunet"))
    assert contrast["difference"] > 0
    assert contrast["verdict"] == "too few patients to test (2, at least 6)"
    with (folder / "scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 2 * 2 * 2
    by_hand = np.mean([float(line["dice"]) for line in lines if line["recipe"] == "nnunet"])
    assert table["rows"]["nnunet"]["mean"]["dice"] == pytest.approx(by_hand)
    markdown = (folder / "report.md").read_text()
    assert f"| nnU-Net | {by_hand:.4f} |" in markdown
    assert "| TransUNet | – | 77.49 | – | 31.69 | – |" in markdown
    hd95 = np.mean([float(line["paper_hd95"]) for line in lines if line["recipe"] == "unetrpp"])
    dice = np.mean([float(line["dice"]) for line in lines if line["recipe"] == "unetrpp"])
    assert "| UNETR + MAE | – | 83.52\\* | – | 10.24 | – |" in markdown
    assert f"| UNETR++ | UNETR++ from scratch | 87.22 | {100 * dice:.2f} | 7.53 | {hd95:.2f} |" in markdown
    assert f"| – | nnU-Net | – | {100 * by_hand:.2f} | – |" in markdown  # not in the paper's table of this data set
    assert all((folder / name).is_file() for name in re.findall(r"]\((\S+\.svg)\)", markdown))
    assert f"\nnnU-Net & {100 * by_hand:.2f}" in (folder / "tables.tex").read_text()
    assert "TransUNet (published) & 77.49 & 31.69 & – & – \\\\" in (folder / "tables.tex").read_text()


@pytest.mark.slow
def test_the_page_loads_nothing_and_has_no_errors(finished, tmp_path, find_browser):
    page = (finished.spec.out / "report" / "report.html").read_text()
    assert '<th scope="row">UNETR + MAE</th><td>–</td><td>83.52*</td><td>–</td><td>10.24</td><td>–</td>' in page
    assert "<p>* UNETR + MAE: the mean of the paper&#39;s own columns is 83.37.</p>" in page
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "image/png" not in page  # no image of a case unless it is asked for
    program = tmp_path / "niivue.umd.js"
    program.write_text("n(a.niivue={});loadFromBase64")
    assert "say so with --embed-images" in finished.call("report", "--niivue", str(program), code=2)
    finished.call("report", "--embed-images", "--niivue", str(program), "-o", str(tmp_path / "report"))
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("data:image/png") == 4  # worst and median case of two recipes
    assert not re.findall(r'src="(?!data:)', page)
    linked = re.findall(r'href="([^"]*)"', page)
    assert len(linked) == 4 and all((tmp_path / "report" / unquote(name)).is_file() for name in linked)
    browser = find_browser()
    picture = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1300,2400"]
    shot = subprocess.run(
        [browser, *options, f"--screenshot={picture}", f"file://{tmp_path}/report/report.html"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert picture.stat().st_size > 50_000
    assert not [line for line in shot.stderr.splitlines() if "CONSOLE" in line]


# Runs in the page; what it finds is written into the page, which the browser then prints.
AUDIT = """
axe.run(document, {resultTypes: ["violations"]}).then(found => {
  document.documentElement.dataset.background = getComputedStyle(document.body).backgroundColor;
  document.documentElement.dataset.axe = JSON.stringify(found.violations.map(
    one => [one.impact, one.id, one.nodes.slice(0, 3).map(node => node.html.slice(0, 200))]));
});
"""


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "background"), [(1, "rgb(246, 247, 249)"), (0, "rgb(20, 24, 30)")])
def test_the_page_is_accessible_in_light_and_dark_mode(finished, tmp_path, find_browser, scheme, background):
    browser = find_browser()
    if "AXE_CORE" not in os.environ:
        pytest.skip("AXE_CORE does not name axe-core's axe.min.js")
    program = Path(os.environ["AXE_CORE"]).read_text()
    page = (finished.spec.out / "report" / "report.html").read_text()
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)  # which forbids this very script
    copy = tmp_path / "report.html"
    copy.write_text(page.replace("</body>", f"<script>{program}</script><script>{AUDIT}</script></body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    done = subprocess.run(
        [browser, *options, f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom", copy.as_uri()],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert re.findall(r'data-background="([^"]*)"', done.stdout) == [background]
    (found,) = re.findall(r'data-axe="([^"]*)"', done.stdout)
    serious = [one for one in json.loads(html.unescape(found)) if one[0] in ("serious", "critical")]
    assert not serious, serious


@pytest.mark.slow
def test_pretraining_comes_first_and_held_out_cases_are_scored(small):
    environment = '[environment]\nGREETING = "hello"\n'
    small.file.write_text("held_out = true\n" + small.file.read_text() + "mirror_axes = []\n" + environment)
    small.behave(predict={"fails": True})
    small.call("run", code=1)
    assert set(small.done()) == {"Dataset005__TopoMAEPlans__plan", PRETRAIN, TRAIN}
    assert last_lines(small.folder(PREDICT).log, 1) == ["out of memory in prediction"]
    small.behave()
    small.call("run")
    assert set(small.done()) == {"Dataset005__TopoMAEPlans__plan", PRETRAIN, TRAIN, PREDICT, SCORE}
    scores = json.loads((small.folder(SCORE).path / "scores.json").read_text())
    assert (list(scores["scores"]), scores["parameters"]) == (["case_10", "case_11", "case_12"], 12)
    predicted = small.folder(PREDICT)
    # The half file of the failed attempt is gone.
    assert [path.name for path in sorted(predicted.predictions.iterdir())] == [f"case_{n}.nii.gz" for n in (10, 11, 12)]
    assert last_lines(predicted.log, 1) == ["hello"]
    (command,) = predicted.done()["commands"]
    assert "-tr TopoMAEFusionTrainer -p TopoMAEPlans_benchmark -f 0 --disable_tta" in command
    # What leaves the machine names no folder of it.
    assert command.startswith("nnUNetv2_predict -i $nnUNet_raw/Dataset005_Test/imagesTs -o $OUT/runs/")
    small.call("report", "--partial")
    small.call("export-scores", "-o", str(small.root / "scores"))
    leaving = [*(small.spec.out / "report").iterdir(), *(small.root / "scores").iterdir()]
    assert len(leaving) > 5 and not [path for path in leaving if str(small.root) in path.read_text()]
    assert small.starts(TRAIN) == ["anew"]
    # Other truth: only the score is done again.
    with (small.raw / "labelsTs/case_10.nii.gz").open("ab") as file:
        file.write(b"more")
    assert set(small.done()) == {"Dataset005__TopoMAEPlans__plan", PRETRAIN, TRAIN, PREDICT}
    link = next(small.folder(TRAIN).results.glob("*/TopoMAEPretrainer__*"))
    assert link.is_symlink()
    assert link.resolve().is_relative_to(small.folder(PRETRAIN).path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_control_trains_for_the_time_that_the_pre_trained_recipe_has_taken(small):
    """Pre-training: 2 epochs of 4.5 s. Fine-tuning: 3 epochs of 1.5 s. So the control has 3 + 6 epochs."""
    control = TRAIN.replace("__full__", "__full-scratch-time__")
    small.limit(recipes='["full-scratch-time", "full"]')
    small.behave(TopoMAEPretrainer={"recorded": 4.5})
    assert "all done" in small.call("run", "--slots", "2")
    done = small.done()
    assert done[control] > done[TRAIN] > done[PRETRAIN] and len(done) == len(small.jobs)
    folder = small.folder(control)
    assert len((folder.fold / "metrics.jsonl").read_text().splitlines()) == 9
    assert not list(folder.results.glob("*/TopoMAEPretrainer__*"))


@pytest.mark.slow
def test_a_change_redoes_what_depends_on_it_and_nothing_else(small):
    small.call("run")
    before = small.done()
    small.file.write_text(small.file.read_text().replace("epochs = 3", "epochs = 4"))
    assert set(small.done()) == {"Dataset005__TopoMAEPlans__plan", PRETRAIN}
    small.call("run")
    after = small.done()
    assert {name for name in after if after[name] != before[name]} == {TRAIN, SCORE}
    # Back to the former settings: the former results are still there.
    small.file.write_text(small.file.read_text().replace("epochs = 4", "epochs = 3"))
    assert small.done() == before
    # Another recipe without pre-training, and another time of a file: nothing is new.
    (small.raw / "labelsTr/case_0.nii.gz").touch()
    small.limit(recipes='["nnunet", "full", "unetrpp"]')
    assert small.done() == before
    small.limit(recipes='["full"]')
    # The whole folder elsewhere: the same, and what is missing is done there.
    out = small.spec.out
    (small.folder(TRAIN).path / "done.json").unlink()
    moved = small.root / "moved"
    moved.mkdir()
    out.rename(moved / out.name)
    small.file = small.file.rename(moved / small.file.name)
    small.call("run")
    assert set(small.done()) == set(before)
    assert small.starts(TRAIN)[-1] == "--c"
    # Other data: everything is new.
    with (small.raw / "labelsTr/case_0.nii.gz").open("ab") as file:
        file.write(b"more")
    assert not small.done()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("half", [False, True])
def test_a_file_that_changes_during_a_run_stops_it(small, half):
    """Also where it is read while an editor has written half of it."""
    go_on = small.root / "go_on"
    small.behave(TopoMAEPretrainer={"until": str(go_on)})
    driver = small.start("run")
    small.wait_for(lambda: list(small.folder(PRETRAIN).path.rglob("metrics.jsonl")), 120)
    before, job = small.file.read_text(), small.folder(TRAIN)
    after = before.replace("epochs = 3", "epochs = 4")
    small.file.write_text(after[: after.index("epochs = 4") + 8] if half else after)
    go_on.touch()
    assert driver.wait(60) == 2
    assert job.state() == "waiting"
    small.file.write_text(after)
    assert set(small.done()) == {"Dataset005__TopoMAEPlans__plan", PRETRAIN}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_jobs_that_are_added_during_a_run_are_done_too(small):
    go_on = small.root / "go_on"
    small.behave(TopoMAEPretrainer={"until": str(go_on)})
    driver = small.start("run")
    small.wait_for(lambda: list(small.folder(PRETRAIN).path.rglob("metrics.jsonl")), 120)
    before = {job.name for job in small.jobs}
    small.limit(recipes='["full", "unetrpp"]')
    go_on.touch()
    assert driver.wait(120) == 0
    assert set(small.done()) == {job.name for job in small.jobs} > before


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_failing_job_takes_only_its_dependants_with_it(bench):
    bench.limit(recipes='["unetrpp", "full"]', folds="[0]", seeds="[0]")
    bench.behave(TopoMAEPretrainer={"fails": True})
    out = bench.call("run", code=1)
    assert "1 jobs failed; 2 that need them were left out" in out
    assert "unetrpp" in " ".join(bench.done())
    assert bench.folder(PRETRAIN).state() == "failed"
    assert "out of memory" in bench.folder(PRETRAIN).log.read_text()
    assert "failed" in bench.call("status")
    assert "2 of" not in bench.call("report", "--partial")
    bench.behave()
    bench.call("run")
    assert len(bench.done()) == len(bench.jobs)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_reports_of_unfinished_benchmarks_must_be_asked_for(small):
    assert "1 of 1 scores are missing" in small.call("report", code=2)
    assert "1 of 1 scores are missing" in small.call("report", "--partial", code=2)


def kill_group(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("whom", ["scheduler", "supervisor", "trainer"])
def test_kill_9_of_anything_and_start_again(small, whom):
    small.behave(TopoMAEFusionTrainer={"seconds": 0.6, "worker": True})
    driver = small.start("run")
    folder = small.folder(TRAIN)
    record = "nnUNet_results/*/TopoMAEFusionTrainer__*/fold_0/metrics.jsonl"
    small.wait_for(lambda: list(folder.path.glob(record)), 120)
    finished = small.done()
    assert set(finished) == {"Dataset005__TopoMAEPlans__plan", PRETRAIN}
    if whom == "scheduler":
        kill_group(driver)
        # The supervisor lives on, on its own, and a second driver waits for it.
        assert folder.state() == "running"
    elif whom == "supervisor":
        supervisors = subprocess.run(["pgrep", "-f", f"job -b {small.file} {TRAIN}"], capture_output=True, text=True)
        for number in supervisors.stdout.split():
            os.kill(int(number), signal.SIGKILL)
        assert driver.wait(60) == 1  # the job counts as failed
    else:
        for number in small.processes(folder.path):
            if b"nnUNetv2_train" in Path(f"/proc/{number}/cmdline").read_bytes():
                os.kill(int(number), signal.SIGKILL)
        assert driver.wait(60) == 1
    small.behave()
    small.call("run")
    after = small.done()
    assert set(after) == {"Dataset005__TopoMAEPlans__plan", PRETRAIN, TRAIN, SCORE}
    assert {name: after[name] for name in finished} == finished  # nothing finished is done again
    starts = small.starts(TRAIN)
    assert starts == (["anew"] if whom == "scheduler" else ["anew", "--c"])
    small.wait_for(lambda: not small.processes(folder.path), 10)  # no orphan remains


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_drivers_share_the_work(bench):
    bench.limit(recipes='["unetrpp"]', folds="[0, 1]", seeds="[0]")
    bench.behave(UNETRPPTrainer={"seconds": 0.1})
    drivers = [bench.start("run") for _ in range(2)]
    assert [driver.wait(180) for driver in drivers] == [0, 0]
    assert len(bench.done()) == len(bench.jobs)
    for fold in range(2):
        assert bench.starts(f"Dataset005__unetrpp__fold{fold}__seed0__train") == ["anew"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupting_stops_the_children_and_keeps_their_work(small, number, code):
    small.behave(TopoMAEFusionTrainer={"seconds": 0.5, "worker": True})
    driver = small.start("run")
    folder = small.folder(TRAIN)
    small.wait_for(lambda: list(folder.path.glob("nnUNet_results/*/TopoMAEFusion*/fold_0/checkpoint_latest.pth")), 120)
    driver.send_signal(number)
    assert driver.wait(60) == code
    assert folder.state() == "stopped"
    assert (folder.fold / "saved.txt").is_file()
    assert not small.processes(folder.path)
    small.behave()
    small.call("run")
    assert small.starts(TRAIN) == ["anew", "--c"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_second_interrupt_ends_a_training_that_does_not_stop(small):
    small.behave(TopoMAEFusionTrainer={"until": str(small.root / "never"), "hangs": True})
    driver = small.start("run")
    folder = small.folder(TRAIN)
    small.wait_for(lambda: list(folder.path.glob("nnUNet_results/*/TopoMAEFusion*/fold_0/checkpoint_latest.pth")), 120)
    driver.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        driver.wait(2.0)
    assert folder.state() == "running"  # it could still save
    driver.send_signal(signal.SIGINT)
    assert driver.wait(15) == 130
    assert folder.state() == "stopped" and not small.processes(folder.path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_broken_checkpoint_is_moved_aside(small):
    small.call("run")
    folder = small.folder(TRAIN)
    fold = next(folder.results.glob("*/TopoMAEFusionTrainer__*/fold_0"))
    for name in ("checkpoint_final.pth", "checkpoint_latest.pth"):
        (fold / name).write_bytes((fold / name).read_bytes()[:300])
    (folder.path / "done.json").unlink()
    small.call("run")
    assert small.starts(TRAIN) == ["anew", "anew"]
    assert (fold / "checkpoint_latest.broken").is_file()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_changed_outputs_are_not_built_upon(small):
    small.behave(TopoMAEFusionTrainer={"fails": True})
    small.call("run", code=1)
    checkpoint = next(small.folder(PRETRAIN).results.glob("*/*/fold_0/checkpoint_final.pth"))
    checkpoint.write_bytes(b"other weights")
    small.behave()
    out = small.call("run", code=1)
    assert "is not what its job made" in out


@pytest.mark.slow
def test_exit_codes_of_a_single_job(small):
    assert small.call("job", TRAIN, code=76) == f"{TRAIN}: a job that it needs has not finished\n"
    small.call("job", "Dataset005__TopoMAEPlans__plan")
    small.behave(TopoMAEPretrainer={"seconds": 1.0})
    first = small.start("job", PRETRAIN)
    small.wait_for(lambda: small.folder(PRETRAIN).state() == "running")
    assert "another process is running this job" in small.call("job", PRETRAIN, code=75)
    assert first.wait(60) == 0
    small.behave(TopoMAEFusionTrainer={"fails": True})
    assert "failed (1)" in small.call("job", TRAIN, code=1)
    assert "has no job nothing" in small.call("job", "nothing", code=2)


def test_status_is_quick_and_without_torch(bench):
    bench.limit(folds="[0, 1, 2, 3, 4]", seeds="[0, 1, 2, 3, 4]")
    start = time.monotonic()
    out = bench.call("status")
    assert time.monotonic() - start < 3.0  # a second where nothing else runs
    assert "101 jobs, 101 waiting" in out or "jobs" in out
    argv = bench.argv("status")
    argv[1:1] = ["-X", "importtime"]
    done = subprocess.run(argv, env=bench.environment, capture_output=True, text=True)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "nnunetv2", "scipy", "SimpleITK", "matplotlib"}


def read_all(terminal, seen):
    with suppress(OSError):  # the other side has closed
        while part := os.read(terminal, 4096):
            seen += part


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_status_shows_progress(small):
    go_on = small.root / "go_on"
    small.behave(TopoMAEFusionTrainer={"until": str(go_on)})
    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 160))
    driver = subprocess.Popen(
        small.argv("run"), env=small.environment, stdout=subprocess.DEVNULL, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    seen = bytearray()
    reader = threading.Thread(target=read_all, args=(ours, seen), daemon=True)
    reader.start()
    small.wait_for(lambda: (small.folder(TRAIN).fold / "metrics.jsonl").is_file(), 120)
    out = small.call("status")
    small.wait_for(lambda: b"1/3 [" in seen)
    go_on.touch()
    assert driver.wait(60) == 0
    assert "] 1/3 1.5 s per epoch" in out
    # Where stderr is a terminal, the driver itself shows the epochs.
    reader.join(10)
    assert re.search(rf"{TRAIN}: +33%\|.* 1/3 \[", seen.decode())
    assert "all done" in small.call("status")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_exported_commands_do_the_same(small):
    script = small.root / "commands.sh"
    script.write_text(small.call("export"))
    assert f"# after Dataset005__TopoMAEPlans__plan, {PRETRAIN}" in script.read_text()
    subprocess.run(["bash", str(script)], env=small.environment, check=True, timeout=120, capture_output=True)
    assert len(small.done()) == 4
    assert "benchmark job" not in small.call("export")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_submitting_to_slurm(small):
    """Against a stand-in for sbatch that writes down what it is given."""
    fake = small.bin / "sbatch"
    fake.write_text(
        '#!/bin/bash\nn=$(ls "$(dirname $0)"/submitted_* 2>/dev/null | wc -l)\n'
        '{ printf "%s\\n" "$@"; cat; } > "$(dirname $0)/submitted_$n"\necho "$((100 + n));cluster"\n'
    )
    fake.chmod(0o755)
    small.file.write_text(small.file.read_text() + '[slurm]\npartition = "gpu"\ntime = "1-00:00"\n')
    assert "4 jobs submitted" in small.call("submit")
    scripts = [(small.bin / f"submitted_{number}").read_text() for number in range(4)]
    assert "--dependency" not in scripts[0]
    assert "--dependency=afterok:100\n" in scripts[1]
    assert "--dependency=afterok:100:101" in scripts[2]
    assert all("--partition=gpu" in text and "--requeue" in text and "--signal=B:USR1@120" in text for text in scripts)
    fingerprint = small.folder(TRAIN).path.name
    assert f"benchmark job -b {small.file} {TRAIN} --fingerprint {fingerprint} &" in scripts[2]
    # The script itself, without SLURM: passes the warning on and asks for another turn.
    control = small.bin / "scontrol"
    control.write_text(f'#!/bin/bash\necho "$@" > {small.root}/requeued\n')
    control.chmod(0o755)
    for name in ("Dataset005__TopoMAEPlans__plan", PRETRAIN):
        small.call("job", name)
    small.behave(TopoMAEFusionTrainer={"seconds": 2.0})
    body = "#!/bin/bash" + scripts[2].split("#!/bin/bash", 1)[1]
    environment = {**small.environment, "PATH": f"{small.bin}:{os.environ['PATH']}", "SLURM_JOB_ID": "102"}
    batch = subprocess.Popen(["bash", "-c", body], env=environment, start_new_session=True)
    small.wait_for(lambda: small.folder(TRAIN).state() == "running")
    time.sleep(1.0)
    batch.send_signal(signal.SIGUSR1)
    assert batch.wait(60) == 77
    assert (small.root / "requeued").read_text() == "requeue 102\n"
    assert small.folder(TRAIN).state() == "stopped"
    assert (small.folder(TRAIN).fold / "saved.txt").is_file()
