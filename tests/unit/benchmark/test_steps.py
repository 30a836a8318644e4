import json
import sys
import time

import pytest

from nnunet_topomae.benchmark.steps import Chain, Command, Step, StepError, find_program, last_lines

PYTHON = sys.executable.split("/")[-1]


@pytest.fixture
def calls():
    return []


def chain(folder, **salt):
    return Chain(folder, {"GREETING": "hello"}, salt)


def function_step(name, calls, folder, **parameters):
    output = folder / f"{name}.txt"

    def work():
        calls.append(name)
        output.write_text(name)

    return Step(name, name.title(), work, (output,), parameters)


def script(name, code, *, resume=(), outputs=()):
    return Step(name, name, Command((PYTHON, "-c", code), ("machine",), resume), outputs)


def test_a_second_run_does_nothing(tmp_path, calls):
    steps = [function_step("a", calls, tmp_path), function_step("b", calls, tmp_path, size=(1, 2))]
    first = chain(tmp_path).run(steps)
    second = chain(tmp_path).run(steps)
    assert calls == ["a", "b"]
    assert [r.skipped for r in first] == [False, False]
    assert [r.skipped for r in second] == [True, True]
    assert [r.seconds for r in second] == [r.seconds for r in first]


def test_changed_parameters_redo_the_step_and_all_after_it(tmp_path, calls):
    def steps(size):
        return [
            function_step("a", calls, tmp_path),
            function_step("b", calls, tmp_path, size=size),
            function_step("c", calls, tmp_path),
        ]

    chain(tmp_path).run(steps(1))
    (tmp_path / "c.txt").write_text("stale")
    chain(tmp_path).run(steps(2))
    assert calls == ["a", "b", "c", "b", "c"]
    assert (tmp_path / "c.txt").read_text() == "c"


def test_other_versions_redo_everything(tmp_path, calls):
    steps = [function_step("a", calls, tmp_path)]
    chain(tmp_path, package="1.0").run(steps)
    chain(tmp_path, package="1.1").run(steps)
    assert calls == ["a", "a"]


def test_an_interrupted_command_is_continued_and_keeps_its_output(tmp_path):
    output = tmp_path / "made"
    code = f"""
import pathlib, sys
folder = pathlib.Path({str(output)!r}); folder.mkdir(exist_ok=True)
(folder / str(len(list(folder.iterdir())))).write_text(' '.join(sys.argv[1:]))
sys.exit('--c' not in sys.argv)"""
    step = script("train", code, resume=("--c",), outputs=(output,))
    with pytest.raises(StepError, match="exit code 1"):
        chain(tmp_path).run([step])
    spent = json.loads((tmp_path / "steps" / "train.json").read_text())
    assert spent["state"] == "started"
    record = chain(tmp_path).run([step])[0]
    assert not record.skipped and record.seconds > spent["seconds"]
    assert [(output / name).read_text() for name in "01"] == ["machine", "machine --c"]


def test_a_command_of_other_parameters_starts_anew(tmp_path):
    output = tmp_path / "made"
    output.mkdir()
    (output / "stale").touch()
    chain(tmp_path).run([script("train", f"open({str(output)!r} + '.txt', 'w')", outputs=(output,))])
    assert not output.exists()


def test_environment_log_and_failure(tmp_path):
    step = script("fail", "import os\nfor i in range(30): print(os.environ['GREETING'], i)\nraise SystemExit(3)")
    with pytest.raises(StepError, match=r"'fail' failed with exit code 3.*fail\.log") as caught:
        chain(tmp_path).run([step])
    assert last_lines(caught.value.log) == [f"hello {i}" for i in range(10, 30)]


def test_the_command_line_names_no_folder(tmp_path):
    step = Step("predict", "Predict", Command(("nnUNetv2_predict", "-i", str(tmp_path / "raw")), ("-device", "cpu")))
    assert chain(tmp_path).describe(step) == "nnUNetv2_predict -i $OUT/raw -device cpu"


def test_nothing_outlives_a_command(tmp_path):
    beat = tmp_path / "beat"
    orphan = f"import time\nwhile True: open({str(beat)!r}, 'a').write('x'); time.sleep(0.02)"
    code = f"""
import pathlib, subprocess, sys, time
subprocess.Popen([sys.executable, '-c', {orphan!r}])
while not pathlib.Path({str(beat)!r}).exists(): time.sleep(0.01)"""
    chain(tmp_path).run([script("leaves", code)])
    size = beat.stat().st_size
    time.sleep(0.2)
    assert beat.stat().st_size == size > 0


def test_two_runs_in_one_folder_are_refused(tmp_path, calls):
    def nested():
        with pytest.raises(RuntimeError, match="another run"):
            chain(tmp_path).run([function_step("a", calls, tmp_path)])

    chain(tmp_path).run([Step("outer", "outer", nested)])
    assert calls == []


def test_outputs_outside_the_folder_are_never_deleted(tmp_path):
    outside = tmp_path / "precious"
    outside.mkdir()
    with pytest.raises(ValueError, match="is not below"):
        chain(tmp_path / "out").run([Step("a", "a", list, (outside,))])
    with pytest.raises(ValueError, match="is not below"):
        chain(tmp_path / "out").run([Step("b", "b", list, (tmp_path / "out",))])
    assert outside.is_dir()


def test_a_missing_program_is_named():
    with pytest.raises(RuntimeError, match="nnUNetv2_no_such_command"):
        find_program("nnUNetv2_no_such_command")
