"""Scores that travel, folders that move, markers that are damaged, GPUs that are shared."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nnunet_topomae.benchmark import gpus, scheduler
from nnunet_topomae.benchmark.collect import collect
from nnunet_topomae.benchmark.exchange import export_scores, import_scores
from nnunet_topomae.benchmark.jobs import Job, make_jobs
from nnunet_topomae.benchmark.spec import BenchmarkSpec, read_spec
from nnunet_topomae.benchmark.stages import _link
from nnunet_topomae.benchmark.status import describe
from nnunet_topomae.benchmark.store import JobFolder, jobs_to_do
from nnunet_topomae.benchmark.tables import _merge
from nnunet_topomae.cli import main
from nnunet_topomae.files import hash_json


@pytest.fixture
def elsewhere(finished_demo: Path, tmp_path: Path):
    """The same benchmark's file and data on another machine, where nothing is done."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copytree(finished_demo.parent / "nnUNet_raw", folder / "nnUNet_raw")  # with other times
    file = Path(shutil.copy(finished_demo, folder))
    return read_spec(file), make_jobs(read_spec(file))


@pytest.fixture
def exported(finished_demo: Path, tmp_path: Path) -> Path:
    spec = read_spec(finished_demo)
    files = export_scores(spec, make_jobs(spec), tmp_path / "scores")
    assert len(files) == 2 and all(file.stat().st_size < 100_000 for file in files)
    # The demo's commands name its folder, as earlier versions recorded them.
    assert not any(str(finished_demo.parent) in file.read_text() for file in files)
    return tmp_path / "scores"


@pytest.mark.slow
def test_scores_of_another_machine_make_the_same_report(finished_demo, elsewhere, exported, tmp_path):
    spec, jobs = elsewhere
    assert len(jobs_to_do(jobs, spec)) == len(jobs)
    found = import_scores(spec, jobs, exported)
    assert len(found.taken) == 2 and not found.known
    assert jobs_to_do(jobs, spec) == []
    assert describe(jobs, spec).startswith(f"demo: {len(jobs)} jobs, 2 done, {len(jobs) - 2} not needed here")
    here = collect(spec, jobs)
    original = read_spec(finished_demo)
    for one, other in zip(here, collect(original, make_jobs(original)), strict=True):
        assert str(one.scores) == str(other.scores)
        assert (one.parameters, one.steps, one.total_macs, one.training["seconds"]) == (
            other.parameters,
            other.steps,
            other.total_macs,
            other.training["seconds"],
        )
        assert (one.pretraining is None) == (other.pretraining is None)
    # Again, and onwards to a third machine.
    again = import_scores(spec, jobs, exported)
    assert len(again.known) == 2 and not again.differing
    for file in export_scores(spec, jobs, tmp_path / "onwards"):
        assert json.loads(file.read_text()) == json.loads((exported / file.name).read_text())


@pytest.mark.slow
def test_other_scores_of_a_job_are_named_and_not_taken(elsewhere, exported, finished_demo, capsys):
    spec, jobs = elsewhere
    file = max(exported.iterdir())
    content = json.loads(file.read_text())
    case = next(iter(content["scores"]["scores"].values()))
    next(iter(case.values()))["dice"] = 0.123
    content["sha256"] = hash_json({key: value for key, value in content.items() if key != "sha256"})
    (exported / "z_copy.json").write_text(json.dumps(content))
    found = import_scores(spec, jobs, exported)
    assert len(found.taken) == 2 and found.known == [job.name for job in found.differing] == [file.stem]
    kept = [score.dice for entry in collect(spec, jobs) for of in entry.scores.values() for score in of.values()]
    assert 0.123 not in kept
    toml = spec.out / finished_demo.name
    assert main(["benchmark", "import-scores", "-b", str(toml), "-i", str(exported)]) == 0
    said = capsys.readouterr().out
    assert "0 scores taken, 3 were here already" in said and f"1 of those have other values in {exported}" in said
    assert file.stem in said


@pytest.mark.slow
def test_damaged_and_foreign_scores_are_refused_as_a_whole(elsewhere, exported):
    spec, jobs = elsewhere
    file = max(exported.iterdir())
    content = json.loads(file.read_text())

    def refused(match, **changes):
        changed = {**content, **changes}
        if "sha256" not in changes:
            changed["sha256"] = hash_json({key: value for key, value in changed.items() if key != "sha256"})
        file.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=f"{file.name}.*{match}"):
            import_scores(spec, jobs, exported)
        assert len(jobs_to_do(jobs, spec)) == len(jobs)  # not even the other file was taken

    refused("does not fit its checksum", sha256="0" * 64)
    refused("which is not in this benchmark", job="Dataset777__other__score")
    refused("Nothing was taken: .* 1 belong to this benchmark and 1 do not", job="Dataset777__other__score")
    refused("no file of exported scores", format=2)
    versions = {**content["parameters"]["train"]["versions"], "torch": "1.0"}
    other = {**content["parameters"], "train": {**content["parameters"]["train"], "versions": versions}}
    refused("versions of the stage train is .*1.0.* there", fingerprint="0" * 16, parameters=other)
    with pytest.raises(FileNotFoundError, match="holds no exported scores"):
        import_scores(spec, jobs, exported.parent)


@pytest.mark.slow
@pytest.mark.parametrize("content", ["{half", "[]", "{}", '{"outputs": 7}'])
def test_a_damaged_marker_names_its_file(elsewhere, content):
    spec, jobs = elsewhere
    folder = JobFolder.of(jobs[0], spec)
    folder.path.mkdir(parents=True)
    (folder.path / "done.json").write_text(content)
    with pytest.raises(ValueError, match=r"done.json is damaged.*Delete .* to make it again"):
        describe(jobs, spec)


@pytest.mark.slow
def test_a_damaged_score_of_another_machine_names_its_file(elsewhere, exported):
    spec, jobs = elsewhere
    import_scores(spec, jobs, exported)
    job = next(job for job in jobs if job.kind == "score")
    file = JobFolder.of(job, spec).path / "imported.json"
    file.write_text('{"x": 1}')
    with pytest.raises(ValueError, match=r"imported.json is no file of exported scores.*delete .* import the score"):
        collect(spec, jobs)


def test_links_survive_a_move(tmp_path):
    out = tmp_path / "out"
    (out / "runs/plan/data").mkdir(parents=True)
    (out / "runs/plan/data/case").write_text("voxels")
    (out / "runs/train").mkdir()
    link = out / "runs/train/data"
    _link(link, out / "runs/plan/data")
    _link(link, out / "runs/plan/data")
    moved = out.rename(tmp_path / "elsewhere")
    assert (moved / "runs/train/data/case").read_text() == "voxels"
    # An absolute link of an earlier version, whose target is gone.
    old = moved / "runs/train/old"
    old.symlink_to(out / "runs/plan/data")
    _link(old, moved / "runs/plan/data")
    assert not old.readlink().is_absolute() and (old / "case").is_file()


def test_a_gpu_is_held_as_long_as_its_job_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "lock_folder", lambda: tmp_path / "locks")
    held = gpus.hold_gpu("0")
    with held:
        assert gpus.hold_gpu("0") is None and gpus.hold_gpu(None) is not None
        with gpus.hold_gpu("1"):
            pass
        job = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=held.descriptors)
    assert gpus.hold_gpu("0") is None  # the driver is gone, the job is not
    job.communicate(b"\n")
    again = gpus.hold_gpu("0")
    assert again is not None
    with again:
        pass


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Makes nvidia-smi tell UUIDs of GPUs 0, 1, and so on; without any, it fails."""
    monkeypatch.setattr(gpus, "lock_folder", lambda: tmp_path / "locks")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def tell(*uuids):
        program = tmp_path / "nvidia-smi"
        rows = "".join(f"echo '{index}, {uuid}'\n" for index, uuid in enumerate(uuids))
        program.write_text(f'#!/bin/sh\ntest "$*" = "{" ".join(gpus._LIST[1:])}" || exit 1\n{rows or "exit 9"}\n')
        program.chmod(0o755)
        gpus.gpu_uuids.cache_clear()

    yield tell
    gpus.gpu_uuids.cache_clear()


def test_a_gpu_is_the_same_by_index_and_by_uuid(nvidia_smi):
    nvidia_smi("GPU-11aa-5", "GPU-22bb-6")
    with gpus.hold_gpu("1"):
        assert [gpus.hold_gpu(name) for name in ("1", "GPU-22bb-6", "GPU-22")] == [None, None, None]
        with gpus.hold_gpu("0"), gpus.hold_gpu("MIG-33cc-7"):
            assert gpus.hold_gpu("GPU-11aa-5") is None
        # In another container, the only GPU is 0.
        nvidia_smi("GPU-22bb-6")
        assert gpus.hold_gpu("0") is None
        nvidia_smi("GPU-44dd-8")
        with gpus.hold_gpu("0"):
            pass


def test_without_nvidia_smi_a_gpu_is_known_by_the_name_that_it_is_given(nvidia_smi, monkeypatch, tmp_path):
    for break_it in (nvidia_smi, (tmp_path / "nvidia-smi").unlink):
        break_it()
        gpus.gpu_uuids.cache_clear()
        with gpus.hold_gpu("1"):
            assert gpus.hold_gpu("1") is None
        monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def drivers(tmp_path, monkeypatch):
    """Makes drivers whose jobs write what they see and run until they are told to end; and the job."""
    monkeypatch.setattr(gpus, "lock_folder", lambda: tmp_path / "locks")
    go_on = tmp_path / "go_on"
    names = "(os.environ[f'CUDA_{name}'] for name in ('DEVICE_ORDER', 'VISIBLE_DEVICES'))"
    wait = f"import os, pathlib, time\npathlib.Path('{tmp_path}/seen').write_text(' '.join({names}))\n"
    wait += f"while not os.path.exists('{go_on}'): time.sleep(0.02)"
    monkeypatch.setattr(scheduler, "job_command", lambda file, job: [sys.executable, "-c", wait])
    spec = BenchmarkSpec("b", tmp_path / "out", (5,), (), ("x",))
    yield lambda *slots: scheduler.LocalScheduler(spec, tmp_path / "b.toml", slots)
    go_on.touch()


def test_a_driver_starts_no_job_on_the_gpu_of_another_driver(drivers, tmp_path):
    """Not even when the other driver is gone and only its job is left."""
    job = Job("train", "train", "Dataset005_Five", {})
    first, second, third = drivers("1"), drivers("1"), drivers("1", "2")
    assert first._launch(job)
    assert not second._launch(job) and not second.running and second.free == ["1"]
    (child,) = first.running
    del first
    assert third._launch(job) and third.free == ["1"] and not second._launch(job)
    (tmp_path / "go_on").touch()
    children = [child, *third.running]
    assert [one.wait(20) for one in children] == [0, 0]
    assert (tmp_path / "seen").read_text() in ("PCI_BUS_ID 1", "PCI_BUS_ID 2")
    assert second._launch(job)
    assert [one.wait(20) for one in second.running] == [0]
    assert (tmp_path / "seen").read_text() == "PCI_BUS_ID 1"


@pytest.mark.parametrize(
    ("asked", "slots", "device", "visible", "expected"),
    [
        ("0, 1", 1, "cuda", None, ["0", "1"]),
        (None, 1, "cuda", None, ["0"]),
        (None, 1, "cuda", "3, GPU-5a", ["3"]),
        (None, 2, "cuda", "3,GPU-5a", ["3", "GPU-5a"]),
        (None, 2, "cpu", "3", [None, None]),
    ],
)
def test_without_a_choice_a_job_takes_the_first_visible_gpu(asked, slots, device, visible, expected):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert gpus.choose_gpus(asked, slots, device, environment) == expected


@pytest.mark.parametrize(
    ("asked", "slots", "visible", "message"),
    [
        ("0,", 1, None, "--gpus = '0,' must name GPUs"),
        ("", 1, None, "--gpus = '' must name GPUs"),
        ("0,0", 1, None, "each once"),
        (None, 1, "", "CUDA_VISIBLE_DEVICES = '' must name GPUs"),
        (None, 1, "-1", "CUDA_VISIBLE_DEVICES = '-1' must name GPUs"),
        (None, 2, None, "--slots 2: one job runs on a GPU at a time"),
    ],
)
def test_gpus_that_are_none_are_refused(asked, slots, visible, message):
    with pytest.raises(ValueError, match=message):
        gpus.choose_gpus(asked, slots, "cuda", {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})


def test_the_command_hands_its_gpus_to_the_driver(elsewhere, finished_demo, monkeypatch):
    given = []

    class Driver:
        def __init__(self, spec, file, gpus):
            given.append(gpus)

        def run(self, jobs):
            return scheduler.Outcome()

    monkeypatch.setattr(scheduler, "LocalScheduler", Driver)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    file = elsewhere[0].out / finished_demo.name
    file.write_text(file.read_text().replace('device = "cpu"', 'device = "cuda"'))
    command = ["benchmark", "run", "-b", str(file)]
    assert main(command) == main([*command, "--gpus", "1, 0"]) == 0
    assert given == [["3"], ["1", "0"]]


def test_locks_of_a_user_are_at_one_place(monkeypatch, tmp_path):
    before = gpus.lock_folder()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert tempfile.gettempdir() == str(tmp_path)
    assert gpus.lock_folder() == before


def test_values_of_several_machines_stand_side_by_side():
    tables = [{"cores": "4", "GPU": "A"}, {"cores": "8"}, {"cores": "4", "GPU": "A"}]
    assert _merge(tables) == {"cores": "4; 8", "GPU": "A"}
