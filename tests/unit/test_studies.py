"""Every command of studies/ at its smallest size."""

import importlib
import json
import math
import os
import re
import runpy
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch

from nnunet_topomae.architectures.build import build_unetrpp
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.architectures.summary import count_macs, count_parameters
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.datasets.phantom import write_phantom_dataset
from nnunet_topomae.ext_trainer import topomae

Study = Callable[[str], ModuleType]


@pytest.fixture
def study(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Imports a module of studies/ as its command does, from its own folder."""
    folder = repository / "studies"
    for path in folder.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_no_study_hides_a_module_of_python(repository: Path) -> None:
    assert not {path.stem for path in (repository / "studies").glob("*.py")} & sys.stdlib_module_names


def test_every_study_is_in_the_docs(repository: Path) -> None:
    page = (repository / "docs" / "studies.md").read_text()
    commands = {path.name for path in (repository / "studies").glob("*.py") if "__main__" in path.read_text()}
    assert commands <= set(re.findall(r"studies/(\w+\.py)", page))


def test_every_study_is_run_here(repository: Path) -> None:
    run = set(re.findall(r'study\("(\w+)"\)|studies/(\w+)\.sh', Path(__file__).read_text()))
    commands = {path.stem for path in (repository / "studies").glob("*.py") if "__main__" in path.read_text()}
    assert commands <= {name for names in run for name in names}


def test_a_coarse_copy_covers_the_same_box(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, copy = tmp_path / "Dataset001_Ball", tmp_path / "Dataset002_Ball2.5mm"
    distance = np.linalg.norm((np.indices((16, 24, 32)).T - (8, 12, 16)) * (1.5, 1.0, 1.0), axis=-1).T
    for folder, values in (("imagesTr", distance), ("labelsTr", distance < 8)):
        (source / folder).mkdir(parents=True)
        image = SimpleITK.GetImageFromArray(values.astype(np.uint8))
        image.SetSpacing((1.0, 1.0, 1.5))
        image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
        SimpleITK.WriteImage(image, source / folder / "a.nii.gz")
    (source / "dataset.json").write_text("{}")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    study("coarse_dataset").main(["-d", "1", "--to", "2", "--spacing", "2.5"])
    assert (copy / "dataset.json").is_file()
    for folder in ("imagesTr", "labelsTr"):
        old, new = (SimpleITK.ReadImage(root / folder / "a.nii.gz") for root in (source, copy))
        assert all(2 < edge < 3 for edge in new.GetSpacing())
        for corner in (lambda image: [-0.5] * 3, lambda image: [size - 0.5 for size in image.GetSize()]):
            assert np.allclose(*(i.TransformContinuousIndexToPhysicalPoint(corner(i)) for i in (old, new)))
        means = [SimpleITK.GetArrayFromImage(image).mean() for image in (old, new)]
        assert means[0] == pytest.approx(means[1], rel=0.05)


def test_folds_test_some_cases_and_always_train_on_the_others(study: Study) -> None:
    cases = [f"case_{number:03d}" for number in range(16)]
    folds = study("coarse_dataset").make_folds(cases[::-1], 10)
    tested = [case for fold in folds for case in fold["val"]]
    assert [len(fold["val"]) for fold in folds] == [2] * 5 and len(set(tested)) == 10
    always = set(cases) - set(tested)
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == cases and always <= set(fold["train"])
    assert folds == study("coarse_dataset").make_folds(cases, 10)


@pytest.mark.slow
def test_the_reference_is_the_published_network(study: Study) -> None:
    """42.96 M parameters and 47.98 G MACs in the paper; 42.953 M and 47.886 G measured on the public code."""
    strides = [[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * 4]
    shape = derive_network_shape([64, 128, 128], strides, ArchitectureConfig())
    with torch.device("meta"):
        reference = study("reference_unetrpp").ReferenceUNETRPP(shape, 1, 14, ArchitectureConfig())
        ours = build_unetrpp(shape, 1, 14, ArchitectureConfig(), deep_supervision=True)
    assert count_parameters(reference) == 42_952_850
    assert count_parameters(ours) == pytest.approx(count_parameters(reference), rel=1e-4)
    macs = [count_macs(network.eval(), (1, *shape.patch_size)) for network in (reference, ours)]
    assert macs[0] == pytest.approx(47.9e9, rel=0.01)
    assert macs[1] == pytest.approx(macs[0], rel=0.01)


@pytest.mark.slow
def test_step_time(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = study("step_time")
    module.main(["--quick", "--out", str(tmp_path / "out.json")])
    (size,) = read(tmp_path / "out.json")["sizes"]
    assert set(size["ratio"]) == set(module.CONTESTANTS)
    assert size["ratio"]["published"] == {"step": 1.0, "forward": 1.0, "user": 1.0}
    assert all(part["step"] > part["forward"] > 0 for part in size["median"].values())
    assert "| ours |" in capsys.readouterr().out


@pytest.mark.slow
def test_training_step(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study("training_step").main(["--quick", "--out", str(tmp_path / "out.json")])
    result = read(tmp_path / "out.json")
    assert set(result["ratio"]) == {"without", "crop 48", "pool 48", "full"}
    assert all(math.isfinite(value) for value in result["ratio"].values())
    assert "| without |" in capsys.readouterr().out


@pytest.mark.slow
def test_memory(study: Study, tmp_path: Path) -> None:
    study("memory").main(["--quick", "--out", str(tmp_path / "out.json")])
    rows = read(tmp_path / "out.json")["rows"]
    assert [row["training"] for row in rows] == ["pre-training", "fine-tuning"]
    assert all(0.9 < row["estimate / float32"] < 1.1 for row in rows)


@pytest.mark.slow
def test_metrics(study: Study, tmp_path: Path) -> None:
    study("metrics").main(["--quick", "--json", str(tmp_path / "out.json")])
    assert read(tmp_path / "out.json")["cpu_seconds"]["with the paper protocol"] > 0


def test_statistics_coverage(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = study("statistics_coverage")
    kinds = {title: list({row.what: row for row in rows}.values())[:9] for title, rows in module.TABLES.items()}
    monkeypatch.setattr(module, "TABLES", kinds)
    module.main(["--quick", "--json", str(tmp_path / "out.json")])
    result = read(tmp_path / "out.json")
    assert {title: len(rows) for title, rows in result["tables"].items()} == {
        title: len(rows) for title, rows in module.TABLES.items()
    }
    assert result["repetitions"] == 3


def test_the_tables_of_the_docs_are_those_of_the_simulation(study: Study, repository: Path) -> None:
    tables = read(repository / "studies" / "statistics.json")["tables"]
    page = (repository / "docs" / "benchmark.md").read_text(encoding="utf-8")
    assert all(study("statistics_coverage").to_markdown(rows) in page for rows in tables.values())


def test_the_statistics_keep_their_promise(repository: Path) -> None:
    """The committed simulation: 2 to 7 % false positives in every row, and the power that docs/benchmark.md names.

    The study has the rows in which they are more under a title of their own.
    """
    tables = read(repository / "studies" / "statistics.json")["tables"]
    assert any(row["what"] == "calm trainings, folds suit recipes" for row in tables["no difference"])
    assert all(0.02 < row["rates"]["ours"] < 0.07 for row in tables["no difference"])
    power = {(row["what"], row["cases"], row["seeds"]): row["rates"]["ours"] for row in tables["a difference"]}
    assert power["+2 points", 40, 2] >= 0.75 and power["+2 points, shared labels", 40, 3] >= 0.75
    # What the reports call detectable: "about three of four such benchmarks would show it".
    shown = [row["detectable"]["shown"] for row in tables["no difference"]]
    assert 0.7 < statistics.median(shown) < 0.8 and min(shown) > 0.55 and max(shown) < 0.85


@pytest.mark.slow
def test_homology(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = SimpleITK.GetImageFromArray(np.random.default_rng(0).integers(0, 99, (6, 9, 7)).astype(np.int16))
    SimpleITK.WriteImage(image, tmp_path / "scan_0000.nii.gz")
    arguments = ["--quick", "--images", str(tmp_path / "scan_0000.nii.gz"), "--out", str(tmp_path / "out.json")]
    study("homology").main(arguments)
    found = read(tmp_path / "out.json")
    assert all(row["equal"] for row in found["volumes"])
    assert found["volumes"][-1]["shape"] == [6, 9, 7]
    assert "| scan_0000 | 6x9x7 | yes |" in capsys.readouterr().out
    assert {row["kind"] for row in found["losses"]} >= {"late", "init"}


@pytest.mark.slow
def test_topology_training(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, out = study("topology_training"), tmp_path / "out.json"
    module.main(["--quick", "--out", str(out)])
    assert list(read(out)["variants"]) == list(module.VARIANTS)[:2]
    printed = capsys.readouterr().out
    module.main(["--table", str(out)])
    assert capsys.readouterr().out == printed


@pytest.mark.slow
def test_spatial_task(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, out = study("spatial_task"), tmp_path / "out.json"
    module.main(["--quick", "--out", str(out)])
    variants = read(out)["phantoms"]["variants"]
    assert list(variants) == list(module.VARIANTS)
    assert all(0 < value < 4 for run in variants.values() for value in (*run["spa"].values(), run["mean_answer"]))
    printed = capsys.readouterr().out
    module.main(["--table", str(out)])
    assert capsys.readouterr().out == printed


def test_the_recipe_page_shows_what_was_measured(repository: Path) -> None:
    script = runpy.run_path(str(repository / "docs" / "make_recipe_tables.py"))
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"](), "run python docs/make_recipe_tables.py"


def test_spatial_task_flips_where_it_says_so(
    study: Study, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default of `flip_axes` once changed, and two variants stopped to flip."""
    module = study("spatial_task")
    assert [len(module.PretrainingConfig(**variant).flip_axes) for variant in module.VARIANTS.values()] == [0, 3, 3]
    module.main(["--table", str(repository / "studies" / "spatial_task.json")])
    assert capsys.readouterr().out.count("| flips, frame `crop` |") == 2


@pytest.mark.slow
def test_boundary(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study("boundary").main(["--quick", "--out", str(tmp_path / "out.json")])
    assert "| 16^3 | 0.3 |" in capsys.readouterr().out
    assert all(row["largest_difference"] < 0.01 for row in read(tmp_path / "out.json")["rows"])


@pytest.mark.slow
def test_vector_task(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, out = study("vector_task"), tmp_path / "out.json"
    chosen = ["VectorPOSE", "masked, key points"]
    module.main(["--quick", "--out", str(out), "--variants", *chosen])
    variants = read(out)["phantoms"]["variants"]
    assert list(variants) == chosen and set(variants["VectorPOSE"]["vectors"]) == {"partner", "mean_answer", "crops"}
    assert all(run[task]["partner"]["mm"] > 0 for run in variants.values() for task in run if task != "cpu_s")
    printed = capsys.readouterr().out
    module.main(["--table", str(out)])
    assert capsys.readouterr().out == printed


@pytest.mark.slow
def test_topology(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    study("topology").main(["--quick", "--out", str(out)])
    assert "| finite differences |" in capsys.readouterr().out
    study("topology").main(["--quick", "--out", str(out), "--only", "exactness"])
    assert read(out)["exactness"]["problems"] == 50


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_recipe(
    study: Study, nnunet_env: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet

    write_phantom_dataset(nnunet_env.raw, 906, 5, 0, seed=0)
    nnunet.extract_fingerprints([906], num_processes=1, show_progress_bar=False)
    nnunet.plan_experiments([906])
    nnunet.preprocess_dataset(906, configurations=("3d_fullres",), num_processes=(1,))
    crops, out = tmp_path / "crops.pt", tmp_path / "recipe.json"

    def recipe(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["recipe.py", *map(str, arguments)])
        study("recipe").main()
        return capsys.readouterr().out

    variants = ["heads=small,lr=3e-3", "nnunet", "fusion,pretrain=1"]
    recipe("crops", "-d", 906, "--patch", 16, 32, 32, "--steps", 2, "--out", crops)
    recipe("run", crops, "--variants", *variants, "--steps", 3, "--out", out)
    results = read(out)
    assert [result["variant"] for result in results] == variants
    for result in results:
        assert 0 <= result["dice"] <= 1
        assert math.isfinite(result["loss_last_20"])
    assert "pretrain_mse_vit" in results[-1]
    recipe("run", crops, "--variants", *variants, "--steps", 3, "--out", out)
    assert read(out) == results  # nothing is trained twice
    assert recipe("table", out).count("Dataset906") == len(variants)


def test_busy_time_is_the_union_of_spans(study: Study) -> None:
    parts = study("gpu_parts")
    cuda, cpu = parts.DeviceType.CUDA, parts.DeviceType.CPU
    spans = [("b", 5, 9, cuda), ("a", 0, 4, cuda), ("c", 6, 7, cuda), ("d", 8, 11, cuda), ("e", 0, 100, cpu)]
    spans.append(("Optimizer.step#AdamW.step", 0, 50, cuda))
    events = [
        SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end), device_type=device)
        for name, start, end, device in spans
    ]
    assert parts.busy_seconds(SimpleNamespace(events=lambda: events), cuda) == pytest.approx(10e-6)


def test_rates_of_an_optimiser_state(study: Study) -> None:
    layers = [torch.nn.Linear(3, 4), torch.nn.Linear(4, 2), torch.nn.Linear(2, 1)]
    groups = [{"params": layer.parameters(), "lr": rate} for layer, rate in zip(layers, (0.1, 0.2, 0.3), strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.5)
    layers[1](layers[0](torch.ones(1, 3))).sum().backward()
    optimizer.step()
    found = study("gpu_trainings").learning_rates(optimizer.state_dict())
    assert found == [
        {"rate": 0.1, "decay": 0.5, "weights": 16},
        {"rate": 0.2, "decay": 0.5, "weights": 10},
        {"rate": 0.3, "decay": 0.5, "weights": 0},  # never trained
    ]


def test_a_part_that_fails_leaves_what_it_found(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = study("gpu_parts")

    def fails(device: Any, folder: Path, record: dict[str, Any], save: Any) -> None:
        record["first"] = 1
        raise RuntimeError("second")

    monkeypatch.setitem(parts.PARTS, "idle", fails)
    with pytest.raises(RuntimeError, match="second"):
        parts.run_part("idle", torch.device("cpu"), tmp_path, tmp_path / "part.json")
    assert read(tmp_path / "part.json") == {"first": 1}


def test_the_evidence_names_no_folder(study: Study, tmp_path: Path, repository: Path) -> None:
    module = study("gpu_evidence")
    found = module.without_paths({"a": [f"{tmp_path}/x", 1], "b": f"in {repository}/studies"}, tmp_path)
    assert found == {"a": ["TEMPORARY/x", 1], "b": "in REPOSITORY/studies"}


def test_every_part_has_a_limit(study: Study) -> None:
    module = study("gpu_evidence")
    assert [part for row in module.ROWS for part in row] == list(module.PARTS)


def test_the_evidence_is_about_all_trainers(study: Study) -> None:
    trainings = study("gpu_trainings").TRAININGS
    assert set(trainings) == set(topomae.__all__)
    assert all(list(trainings).index(after) < place for place, (_, after, _) in enumerate(trainings.values()) if after)


@pytest.mark.slow
@pytest.mark.timeout(2800)
def test_the_evidence_on_a_cpu(repository: Path, tmp_path: Path) -> None:
    argv = ["studies/gpu_evidence.sh", "--device", "cpu", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(argv, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert (tmp_path / "gpu_evidence.json").is_file(), done.stderr[-8000:]
    evidence = read(tmp_path / "gpu_evidence.json")
    assert done.returncode == 0, json.dumps(evidence, indent=1)[-8000:]
    assert {name for name, part in evidence["parts"].items() if part["ok"]} == {
        "step_time",
        "topology_step",
        "idle",
        "memory",
        "compiled_step_time",
        "trainers",
        "benchmark",
    }
    assert str(repository) not in json.dumps(evidence)
    assert evidence["machine"]["torch"] == torch.__version__


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_long_run(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the training, which starts two workers and writes an epoch now and then."""
    module = study("long_run")
    metrics = tmp_path / "metrics.jsonl"
    script = "import os, time\nfor _ in range(2):\n    if os.fork() == 0: time.sleep(30)\n"
    script += f"for epoch in range(300):\n    open({str(metrics)!r}, 'a').write('{{}}\\n'); time.sleep(0.02)\n"
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)
    training = subprocess.Popen([sys.executable, "-S", "-c", script])
    samples = module.watch(training, metrics, 80)
    workers = module.children(training.pid)
    assert len(workers) == 2 and samples[-1]["step"] >= 80 and all(len(s["workers"]) == 2 for s in samples[1:])
    found = module.end(training, signal.SIGTERM, module.shared_memory())
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    assert found["exit_code"] == -signal.SIGTERM and found["workers"] == found["processes_left"] == 2
    growth = [{"step": 100 * n, "trainer": 50.0 + n, "workers": [10.0, 20.0]} for n in range(20)]
    assert module.slope(growth) == pytest.approx({"trainer": 10.0, "workers": 0.0})
    module.draw({"samples": samples}, tmp_path / "memory.svg")
    assert (tmp_path / "memory.svg").is_file()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_long_run_at_its_smallest_size(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With real trainings. Other tests may leave files in /dev/shm meanwhile, so those are not looked at."""
    out, picture = tmp_path / "run.json", tmp_path / "run.svg"
    argv = ["long_run.py", "--steps", "40", "--out", str(out), "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", argv)
    study("long_run").main()
    found = read(out)
    assert found["samples"][-1]["step"] >= 40 and picture.is_file()
    ends = [(end["signal"], end["exit_code"], end["workers"], end["processes_left"]) for end in found["ends"]]
    assert ends == [("SIGTERM", 143, 2, 0), ("SIGINT", 1, 2, 0), ("SIGKILL", -9, 2, 0)]


def test_the_long_training_keeps_its_promise(study: Study, repository: Path) -> None:
    """The committed run: memory that hardly grows over the second half, and nothing left after any signal."""
    found = read(repository / "studies" / "long_run.json")
    assert found["samples"][-1]["step"] >= 2000 and all(len(sample["workers"]) == 2 for sample in found["samples"])
    growth = study("long_run").slope(found["samples"])
    assert growth == pytest.approx(found["growth"]) and all(mib < 20 for mib in growth.values())
    assert [stop["signal"] for stop in found["ends"]] == ["SIGTERM", "SIGINT", "SIGKILL"]
    assert all(stop["workers"] == 2 for stop in found["ends"])
    assert not any(stop["processes_left"] or stop["shared_memory_left"] for stop in found["ends"])
