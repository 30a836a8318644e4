"""The doctor: every fault it knows is named with its cure, and a checkpoint's manifest is compared with the data."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from packaging.specifiers import SpecifierSet

from nnunet_topomae import _hook
from nnunet_topomae.cli import USER_ERROR, main
from nnunet_topomae.commands import doctor as command
from nnunet_topomae.data.cases import hash_images, hash_json, hash_json_file
from nnunet_topomae.doctor import checks
from nnunet_topomae.nnunet.plan import read_plan
from nnunet_topomae.training.checkpoints import ENTRY, describe

CONFIGURATION = "3d_fullres"
CASES = ("case_1", "case_2", "case_3")


def healthy_findings() -> dict[str, Any]:
    return {
        "libraries": dict.fromkeys(("torch", "torchvision", "timm", "nnunetv2", "cripser", "gudhi", "numba")),
        "search": {"value": "active", "error": None},
        "classes": {name: {"value": module, "error": None} for name, (_, module) in _hook.CLASSES.items()},
        "device": {
            "value": {"type": "cuda", "name": "GPU", "free": 40 * checks.GIB, "total": 48 * checks.GIB},
            "error": None,
        },
    }


def by_name(found: list[checks.Check]) -> dict[str, checks.Check]:
    return {check.name: check for check in found}


def run_doctor(*arguments: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with modules in ``path`` in front of the installed ones."""
    code = "import sys; from nnunet_topomae.cli import main; sys.exit(main())"
    variables = {**os.environ, **environment, **({} if path is None else {"PYTHONPATH": str(path)})}
    return subprocess.run(
        [sys.executable, "-P", "-c", code, "doctor", *arguments],
        capture_output=True,
        text=True,
        env=variables,
        check=False,
    )


def test_every_fault_has_advice_and_every_ok_has_none() -> None:
    findings = healthy_findings()
    findings["search"]["value"] = "inactive"
    findings["libraries"]["torchvision"] = "RuntimeError: operator torchvision::nms does not exist"
    for check in checks.all_checks(findings, {}):
        assert (check.advice == "") == (check.status == "ok"), check


def test_healthy_libraries_hook_and_classes(nnunet_env: tuple[Path, ...]) -> None:
    found = by_name(checks.all_checks(healthy_findings(), os.environ))
    for name in ("python", "torch", "torchvision", "timm", "nnunetv2", "cripser", "start-up hook", *_hook.CLASSES):
        assert found[name].status == "ok", found[name]
    assert found["device"].value == "cuda, GPU, 40.0 of 48.0 GiB free"


@pytest.mark.parametrize(
    ("torch_version", "index"),
    [
        ("2.9.1+cpu", " --index-url https://download.pytorch.org/whl/cpu"),
        ("2.9.1+cu126", " --index-url https://download.pytorch.org/whl/cu126"),
        ("2.9.1", ""),
    ],
)
def test_mixed_builds_are_cured_by_one_build(monkeypatch: pytest.MonkeyPatch, torch_version: str, index: str) -> None:
    versions = {"torch": torch_version, "torchvision": "0.24.1", "timm": "1.0"}
    monkeypatch.setattr(checks, "version", versions.__getitem__)
    broken = "RuntimeError: operator torchvision::nms does not exist"
    vision, timm = checks.check_vision({"torch": None, "torchvision": broken, "timm": broken})
    expected = f"pip uninstall -y torch torchvision && pip install torch torchvision{index}"
    for check in (vision, timm):
        assert check.status == "error"
        assert broken in check.value
        assert check.advice.endswith(f"Run: {expected}")
        assert torch_version in check.advice


def test_unsupported_nnunet_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "version", lambda name: "2.7.0")
    monkeypatch.setattr(checks, "required_versions", lambda: {"nnunetv2": SpecifierSet(">=2.8,<2.10")})
    found = by_name(checks.check_libraries(dict.fromkeys(healthy_findings()["libraries"])))["nnunetv2"]
    assert found.status == "error"
    assert found.value.startswith("2.7.0")
    assert found.advice == 'Run: pip install "nnunetv2<2.10,>=2.8"'


def test_required_versions_come_from_our_metadata() -> None:
    required = checks.required_versions()
    assert "2.8.1" in required["nnunetv2"]
    assert "2.7" not in required["nnunetv2"]


def test_libraries_of_homology_may_be_absent() -> None:
    errors = {"cripser": "ModuleNotFoundError: No module named 'cripser'", "gudhi": "ModuleNotFoundError: no gudhi"}
    cripser, gudhi = checks.check_topology_backends(errors)
    assert cripser.status == "warning"
    assert "pip install cripser" in cripser.advice
    assert gudhi.status == "ok"


@pytest.mark.parametrize(
    ("state", "environment", "status", "says"),
    [
        ("active", {}, "ok", "active"),
        ("inactive", {}, "error", "import torch"),
        ("inactive", {"NNUNET_TOPOMAE_DISABLE": "1"}, "warning", "NNUNET_TOPOMAE_DISABLE=1"),
        ("inactive", {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}, "warning", "TORCH_DEVICE_BACKEND_AUTOLOAD=0"),
        ("absent", {}, "error", "_recursive_find_python_class"),
    ],
)
def test_hook_states(state: str, environment: dict[str, str], status: str, says: str) -> None:
    check = checks.check_hook({"value": state, "error": None}, environment)
    assert check.status == status
    assert says in check.value
    assert status == "ok" or str(checks.EXT_TRAINER_FOLDER) in check.advice


@pytest.mark.parametrize(
    ("name", "hook_off", "status", "says"),
    [
        ("TopoMAEPretrainer", False, "error", "Fix the errors above"),
        ("TopoMAEPretrainer", True, "error", "nnUNet_extTrainer"),
        ("TopoMAEPlanner", True, "warning", "nnunet-topomae plan"),
    ],
)
def test_class_that_is_not_found(name: str, hook_off: bool, status: str, says: str) -> None:
    check = checks.check_class(name, {"value": None, "error": "RuntimeError: Could not find"}, hook_off)
    assert check.status == status
    assert says in check.advice


def test_class_of_the_same_name_elsewhere() -> None:
    found = {"value": "nnunetv2.training.nnUNetTrainer.copy", "error": None}
    check = checks.check_class("UNETRPPTrainer", found, hook_off=False)
    assert check.status == "error"
    assert "nnunetv2.training.nnUNetTrainer.copy" in check.value


@pytest.mark.parametrize(
    ("device", "driver", "status", "says"),
    [
        (
            {"type": "cuda", "name": "G", "free": checks.GIB, "total": 4 * checks.GIB},
            True,
            "warning",
            "gpu_memory_target",
        ),
        ({"type": "cpu"}, True, "warning", "CPU build"),
        ({"type": "cpu"}, False, "warning", "-device cpu"),
        ({"type": "mps"}, False, "warning", "-device mps"),
    ],
)
def test_devices(device: dict[str, Any], driver: bool, status: str, says: str) -> None:
    check = checks.check_device({"value": device, "error": None}, driver)
    assert check.status == status
    assert says in check.advice


@pytest.mark.parametrize(("variable", "status"), [("nnUNet_raw", "warning"), ("nnUNet_results", "error")])
def test_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, status: str
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    check = checks.check_folder(variable, str(tmp_path))
    assert check.status == status
    assert "not writable" in check.value


def test_folder_unset_missing_or_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "export nnUNet_raw" in checks.check_folder("nnUNet_raw", None).advice
    assert "mkdir -p" in checks.check_folder("nnUNet_raw", str(tmp_path / "absent")).advice
    monkeypatch.setattr(checks, "MIN_FREE_DISK", 2**80)
    assert checks.check_folder("nnUNet_raw", str(tmp_path)).status == "warning"
    monkeypatch.setattr(checks, "MIN_FREE_DISK", 0)
    assert checks.check_folder("nnUNet_raw", str(tmp_path)).status == "ok"


def test_little_shared_memory_and_few_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MIN_SHARED_MEMORY", 2**80)
    assert "--shm-size" in checks.check_shared_memory(tmp_path).advice
    assert checks.check_shared_memory(tmp_path / "absent").status == "ok"
    assert "nnUNet_n_proc_DA=1" in checks.check_machine(2, 8 * checks.GIB).advice
    assert checks.check_machine(16, None) == checks.Check("machine", "ok", "16 cores")


def test_crash_while_importing_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = [sys.executable, "-c", "import os, sys; print('out of memory', file=sys.stderr); os._exit(9)"]
    real_run = subprocess.run
    monkeypatch.setattr(command.subprocess, "run", lambda _, **options: real_run(crash, **options))
    with pytest.raises(RuntimeError, match=r"crashes \(9\): out of memory"):
        command.run_probe()


@pytest.mark.slow
def test_blocked_libraries_end_to_end(tmp_path: Path) -> None:
    """A real run in which cripser, gudhi and torchvision cannot be imported, and the hook is off."""
    for name in ("cripser", "gudhi"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\")\n")
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    process = run_doctor("--json", path=tmp_path, NNUNET_TOPOMAE_DISABLE="1")
    assert process.returncode == 1, process.stderr
    found = {check["name"]: check for check in json.loads(process.stdout)["checks"]}
    assert found["cripser"]["status"] == "warning"
    assert "pip install cripser" in found["cripser"]["advice"]
    assert found["torchvision"]["status"] == found["timm"]["status"] == "error"
    assert "pip install torch torchvision" in found["timm"]["advice"]
    assert found["start-up hook"]["status"] == "warning"
    assert found["UNETRPPTrainer"]["status"] == "error"
    assert found["nnunetv2"]["status"] == "ok"


@pytest.mark.slow
def test_table_of_a_real_run(nnunet_env: tuple[Path, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert code == 0, lines
    for name, (_, module) in _hook.CLASSES.items():
        assert any(line.split() == ["ok", name, "found", "in", module] for line in lines)
    assert lines[-1].startswith("0 errors, ")


class Trained(NamedTuple):
    """A checkpoint and the preprocessed data that it was trained on."""

    file: Path
    dataset: Path
    images: Path


@pytest.fixture
def trained(nnunet_env: Any, tmp_path: Path) -> Trained:
    strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
    configuration = {
        "data_identifier": "TopoMAEPlans_3d_fullres",
        "patch_size": [32, 64, 48],
        "spacing": [3.0, 1.0, 1.5],
        "normalization_schemes": ["CTNormalization"],
        "architecture": {"network_class_name": "none", "arch_kwargs": {"strides": strides}},
    }
    name = "Dataset999_Phantom"
    plans = {
        "dataset_name": name,
        "plans_name": "TopoMAEPlans",
        "foreground_intensity_properties_per_channel": {"0": {"mean": 40.0, "std": 20.0}},
        "configurations": {CONFIGURATION: configuration},
    }
    dataset = nnunet_env.preprocessed / name
    images = dataset / configuration["data_identifier"]
    images.mkdir(parents=True)
    (dataset / "TopoMAEPlans.json").write_text(json.dumps(plans))
    (dataset / "splits_final.json").write_text(json.dumps([{"train": list(CASES), "val": ["case_4"]}]))
    for case in CASES:
        (images / f"{case}.b2nd").write_bytes(case.encode())
    manifest = {
        "dataset": name,
        "plans_name": "TopoMAEPlans",
        "configuration": CONFIGURATION,
        "fold": 0,
        "splits_hash": hash_json_file(dataset / "splits_final.json"),
        "cases": hash_images(images, CASES),
    }
    plan = read_plan(PlansManager(plans).get_configuration(CONFIGURATION), channels=1, plans=plans)
    logged = {"ema_fg_dice": [np.float64(0.5), np.float32(0.25)], "dice_per_class_or_region": [np.array([0.5, 0.25])]}
    checkpoint = {
        "network_weights": {"weight": torch.zeros(3, 2)},
        "logging": logged,
        "init_args": {"plans": plans, "configuration": CONFIGURATION, "fold": 0, "device": torch.device("cpu")},
        ENTRY: describe("pretraining", plan.config, plan.facts, manifest),
    }
    file = tmp_path / "checkpoint_final.pth"
    torch.save(checkpoint, file)
    return Trained(file, dataset, images)


def checkpoint_report(file: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    code = main(["doctor", "--json", "--checkpoint", str(file)])
    report = json.loads(capsys.readouterr().out)
    return code, report["checkpoint"], {check["name"]: check for check in report["checks"]}


def test_checkpoint_that_agrees_with_the_data(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    code, described, found = checkpoint_report(trained.file, capsys)
    assert code == 0
    assert described["role"] == "pretraining"
    assert sorted(described["manifest"]["cases"]) == list(CASES)
    assert {name: check["status"] for name, check in found.items()} == dict.fromkeys(("plan", "splits", "cases"), "ok")


def _change_case(trained: Trained) -> None:
    (trained.images / "case_2.b2nd").write_bytes(b"preprocessed again")


def _remove_case(trained: Trained) -> None:
    (trained.images / "case_3.b2nd").unlink()


def _change_splits(trained: Trained) -> None:
    (trained.dataset / "splits_final.json").write_text("[]")


def _change_plan(trained: Trained) -> None:
    file = trained.dataset / "TopoMAEPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"][CONFIGURATION]["spacing"] = [2.0, 1.0, 1.5]
    file.write_text(json.dumps(plans))


def _change_intensities(trained: Trained) -> None:
    file = trained.dataset / "TopoMAEPlans.json"
    plans = json.loads(file.read_text())
    plans["foreground_intensity_properties_per_channel"]["0"]["mean"] = 41.0
    file.write_text(json.dumps(plans))


def _remove_plan(trained: Trained) -> None:
    (trained.dataset / "TopoMAEPlans.json").unlink()


@pytest.mark.parametrize(
    ("change", "name", "status", "says"),
    [
        (_change_case, "cases", "error", "1 of 3 changed: case_2"),
        (_remove_case, "cases", "warning", "case_3"),
        (_change_splits, "splits", "error", "splits_final.json has changed"),
        (_change_plan, "plan", "error", "spacing"),
        (_change_intensities, "plan", "error", "intensities"),
        (_remove_plan, "plan", "warning", "does not exist"),
    ],
)
def test_checkpoint_that_no_longer_agrees(
    trained: Trained,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Trained], None],
    name: str,
    status: str,
    says: str,
) -> None:
    change(trained)
    code, _, found = checkpoint_report(trained.file, capsys)
    assert code == int(status == "error")
    assert found.pop(name)["status"] == status
    assert all(check["status"] == "ok" for check in found.values())
    main(["doctor", "--checkpoint", str(trained.file)])
    table = capsys.readouterr().out
    assert says in table
    assert "pretraining with nnunet-topomae" in table


def test_checkpoint_of_an_earlier_version_with_fewer_facts(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(trained.file, weights_only=False)
    del checkpoint[ENTRY]["plan"]["intensities"]
    del checkpoint[ENTRY]["plan"]["architecture"]["dropout"]
    checkpoint[ENTRY]["manifest"]["plan_hash"] = hash_json(checkpoint[ENTRY]["plan"])
    torch.save(checkpoint, trained.file)
    _change_intensities(trained)
    assert checkpoint_report(trained.file, capsys)[2]["plan"]["status"] == "ok"
    _change_plan(trained)
    assert checkpoint_report(trained.file, capsys)[2]["plan"]["status"] == "error"


def test_checkpoint_that_lists_no_cases(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    """As fine-tuning checkpoints of earlier versions: no proof is not a proof."""
    checkpoint = torch.load(trained.file, weights_only=False)
    checkpoint[ENTRY]["manifest"]["cases"] = {}
    torch.save(checkpoint, trained.file)
    cases = checkpoint_report(trained.file, capsys)[2]["cases"]
    assert (cases["status"], cases["value"]) == ("warning", "the checkpoint lists no cases")


def test_checkpoint_without_data_here(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_preprocessed")
    code, described, found = checkpoint_report(trained.file, capsys)
    assert code == 0
    assert described["manifest"]["fold"] == 0
    assert found["data"]["status"] == "warning"


class Payload:
    """Would write a file if a checkpoint's pickles were run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.file,)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"payload": Payload(tmp_path / "executed")}, tmp_path / "file.pth")
    assert main(["doctor", "--checkpoint", str(tmp_path / "file.pth")]) == USER_ERROR
    assert "is refused: reading it runs code" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off"])
def test_damaged_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (tmp_path / "file.pth").write_bytes(content)
    assert main(["doctor", "--checkpoint", str(tmp_path / "file.pth")]) == USER_ERROR
    assert "--c` continues from the newest checkpoint" in capsys.readouterr().err


def test_checkpoint_of_another_trainer_and_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"network_weights": {}, "trainer_name": "nnUNetTrainer"}, tmp_path / "stock.pth")
    assert main(["doctor", "--checkpoint", str(tmp_path / "stock.pth")]) == USER_ERROR
    assert "no 'topomae' entry" in capsys.readouterr().err
    assert main(["doctor", "--checkpoint", str(tmp_path / "absent.pth")]) == USER_ERROR
    assert "there is no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(("system", "status"), [("Linux", "ok"), ("Darwin", "warning"), ("Windows", "warning")])
def test_systems_without_tests_are_named(monkeypatch: pytest.MonkeyPatch, system: str, status: str) -> None:
    monkeypatch.setattr(checks.platform, "system", lambda: system)
    found = checks.check_python()
    assert found.status == status and system in found.value
    assert ("use WSL" in found.advice) == (system == "Windows")
