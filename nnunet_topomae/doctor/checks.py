"""The checks of ``nnunet-topomae doctor``: findings in, statements with a cure out."""

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import nnunet_topomae
from nnunet_topomae import _hook
from nnunet_topomae.files import read_json
from nnunet_topomae.nnunet.mirroring import mirroring_advice
from nnunet_topomae.nnunet.names import DATASET_FILE

GIB = 2**30
MIN_GPU_MEMORY = 8 * GIB
MIN_SHARED_MEMORY = 1 * GIB
MIN_FREE_DISK = 10 * GIB
MIN_CORES = 4
AUTOLOAD_VARIABLE = "TORCH_DEVICE_BACKEND_AUTOLOAD"
RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
EXT_TRAINER_FOLDER = Path(nnunet_topomae.__file__).parent / "ext_trainer"

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Check:
    """One statement about the installation.

    Attributes:
        name: what was looked at.
        status: ``error`` where something will not work, ``warning`` where it may be slow or surprising.
        value: what was found.
        advice: what to do about it; empty if the status is ok.
    """

    name: str
    status: Status
    value: str
    advice: str = ""


def all_checks(findings: Mapping[str, Any], environment: Mapping[str, str]) -> list[Check]:
    """Every check, ordered by dependency: the first error is the one to fix first.

    Args:
        findings: what :func:`nnunet_topomae.doctor.probe.probe` returned.
        environment: environment variables.
    """
    libraries = findings["libraries"]
    return [
        check_python(),
        *check_libraries(libraries),
        *check_topology_backends(libraries),
        check_hook(findings["search"], environment),
        Check("fallback folder", "ok", f"{EXT_TRAINER_FOLDER} (for nnUNet_extTrainer, needed only with the hook off)"),
        *(check_class(name, found, hook_is_off(environment)) for name, found in findings["classes"].items()),
        check_device(findings["device"], shutil.which("nvidia-smi") is not None),
        *(check_folder(name, environment.get(name)) for name in (RAW, PREPROCESSED, RESULTS)),
        *check_mirroring(environment.get(PREPROCESSED)),
        check_shared_memory(Path("/dev/shm")),
        check_machine(_core_count(), _memory()),
    ]


def check_python() -> Check:
    """Python and this package."""
    system = platform.system()
    value = f"{platform.python_version()} on {system}, nnunet-topomae {nnunet_topomae.__version__}"
    if system == "Linux":
        return Check("python", "ok", value)
    advice = "Tested on Linux only, see docs/licences.md."
    if system == "Windows":
        advice += " `nnunet-topomae demo` and `benchmark` do not run on Windows; use WSL."
    return Check("python", "warning", value, advice)


def required_versions() -> dict[str, SpecifierSet]:
    """The versions that this package asks for, by distribution name in lower case."""
    try:
        requirements = [Requirement(line) for line in requires("nnunet-topomae") or ()]
    except PackageNotFoundError:
        return {}
    return {requirement.name.lower(): requirement.specifier for requirement in requirements}


def check_libraries(errors: Mapping[str, str | None]) -> list[Check]:
    """torch, torchvision, timm, nnunetv2 and numba: importable, and of a version that this package supports.

    Args:
        errors: why each library cannot be imported, by name; None for one that can.
    """
    required = required_versions()
    checks = [_check_version(name, errors[name], required.get(name)) for name in ("torch", "nnunetv2", "numba")]
    return checks[:1] + check_vision(errors) + checks[1:]


def check_vision(errors: Mapping[str, str | None]) -> list[Check]:
    """The libraries torchvision and timm, which fail where the builds of torch and torchvision differ.

    Args:
        errors: as in :func:`check_libraries`; that of torch is needed too.
    """
    checks = []
    for name in ("torchvision", "timm"):
        check = _check_version(name, errors[name], None)
        if check.status == "error" and errors["torch"] is None:
            builds = f"torch {_version('torch')}, torchvision {_version('torchvision')}"
            advice = (
                f"{builds}: they must be of the same release and build, else torchvision cannot be imported, nor timm "
                f"and nnU-Net's trainers after it. Run: {matching_builds_command(_version('torch'))}"
            )
            check = Check(name, "error", check.value, advice)
        checks.append(check)
    return checks


def matching_builds_command(torch_version: str) -> str:
    """The command that installs torch and torchvision of one build, the build that torch has now.

    Args:
        torch_version: as torch reports it, such as `2.6.0+cu124`; what follows the plus is the build.
    """
    build = torch_version.partition("+")[2]
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return f"pip uninstall -y torch torchvision && pip install torch torchvision{index}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _check_version(name: str, error: str | None, required: SpecifierSet | None) -> Check:
    found = _version(name)
    cure = f'Run: pip install "{name}{required or ""}"'
    if error is not None:
        return Check(name, "error", f"{found}; import fails: {error}", cure)
    if required is not None and not required.contains(found, prereleases=True):
        return Check(name, "error", f"{found}, but this package supports {required}", cure)
    return Check(name, "ok", found)


def check_topology_backends(errors: Mapping[str, str | None]) -> list[Check]:
    """The two libraries that a plan can choose instead of the package's own persistent homology.

    Args:
        errors: as in :func:`check_libraries`, of `cripser` and `gudhi`.
    """
    checks = []
    for name in ("cripser", "gudhi"):
        if errors[name] is None:
            checks.append(Check(name, "ok", _version(name)))
        elif name == "gudhi":
            checks.append(Check(name, "ok", "not usable (optional, needed only for topology.backend = gudhi)"))
        else:
            advice = "Only plans with topology.backend = cripser need it. Run: pip install cripser"
            checks.append(Check(name, "warning", f"import fails: {errors[name]}", advice))
    return checks


def hook_is_off(environment: Mapping[str, str]) -> bool:
    """Whether the user's environment turns the start-up hook off."""
    return _hook.disabled(environment) or environment.get(AUTOLOAD_VARIABLE, "1") != "1"


def check_hook(search: Mapping[str, Any], environment: Mapping[str, str]) -> Check:
    """The start-up hook in nnU-Net's class search.

    Args:
        search: the probe's finding: `active`, `inactive`, `absent`, or an error.
        environment: environment variables; two of them turn the hook off.
    """
    name = "start-up hook"
    fallback = f'set nnUNet_extTrainer to "{EXT_TRAINER_FOLDER}" and plan with `nnunet-topomae plan`'
    if search["error"] is not None:
        value = f"nnU-Net's class search cannot be imported: {search['error']}"
        return Check(name, "error", value, "Reinstall nnU-Net: pip install --force-reinstall --no-deps nnunetv2")
    if search["value"] == "active":
        return Check(name, "ok", "active")
    if search["value"] == "absent":
        value = f"this nnunetv2 has no {_hook.SEARCH_FUNCTION} to wrap"
        return Check(name, "error", value, f"Install a supported nnunetv2, or {fallback}.")
    if hook_is_off(environment):
        variable = _hook.DISABLE_VARIABLE if _hook.disabled(environment) else AUTOLOAD_VARIABLE
        value = f"turned off by {variable}={environment[variable]}"
        return Check(name, "warning", value, f"Unset {variable}, or {fallback}.")
    value = "inactive: `import torch` does not start it"
    return Check(name, "error", value, f"Install nnunet-topomae again with pip, and torch >= 2.5; or {fallback}.")


def check_class(name: str, found: Mapping[str, Any], hook_off: bool) -> Check:
    """One of our classes, through nnU-Net's own lookup.

    Args:
        name: of the trainer or planner.
        found: the probe's finding: the module in which nnU-Net finds the class, or an error.
        hook_off: whether the user has turned the start-up hook off.
    """
    place, module = _hook.CLASSES[name]
    if found["error"] is None and found["value"] == module:
        return Check(name, "ok", f"found in {module}")
    value = f"nnU-Net finds it in {found['value']}" if found["error"] is None else found["error"]
    if found["error"] is None:
        return Check(name, "error", value, f"Another class has this name; remove it, {module} is the right one.")
    if not hook_off:
        return Check(name, "error", value, "Fix the errors above first; if there are none, please report this one.")
    if place == _hook.PLANNERS_PLACE:
        return Check(name, "warning", value, "With the hook off, plan with `nnunet-topomae plan`.")
    return Check(name, "error", value, f'With the hook off, set nnUNet_extTrainer to "{EXT_TRAINER_FOLDER}".')


def check_device(found: Mapping[str, Any], nvidia_driver: bool) -> Check:
    """What training runs on.

    Args:
        found: the probe's finding.
        nvidia_driver: whether this machine has an NVIDIA driver.
    """
    if found["error"] is not None:
        advice = "Reinstall torch and torchvision from one index, see docs/troubleshooting.md."
        return Check("device", "error", found["error"], advice)
    device = found["value"]
    if device["type"] == "cuda":
        memory = f"{_gib(device['free'])} of {_gib(device['total'])} GiB free"
        if device["total"] < MIN_GPU_MEMORY:
            advice = "Plan for it: nnunet-topomae plan -gpu_memory_target GB."
            return Check("device", "warning", f"cuda, {device['name']}, {memory}", advice)
        return Check("device", "ok", f"cuda, {device['name']}, {memory}")
    if nvidia_driver:
        advice = "torch is a CPU build, or its CUDA is newer than the driver: https://pytorch.org/get-started/locally"
        return Check("device", "warning", f"{device['type']}, although there is an NVIDIA driver", advice)
    advice = f"Give `-device {device['type']}` to nnU-Net's commands; training takes much longer than on a GPU."
    return Check("device", "warning", device["type"], advice)


def check_folder(variable: str, value: str | None) -> Check:
    """One of nnU-Net's three folders.

    Args:
        variable: name of the environment variable.
        value: the folder that it names; None or empty where it is not set.
    """
    if not value:
        return Check(variable, "warning", "not set", f"Run: export {variable}=/path/to/{variable}")
    folder = Path(value)
    if not folder.is_dir():
        return Check(variable, "warning", f"{folder} is not a folder", f'Run: mkdir -p "{folder}"')
    free = shutil.disk_usage(folder).free
    described = f"{folder}, {_gib(free)} GiB free"
    if not os.access(folder, os.W_OK):
        status: Status = "warning" if variable == RAW else "error"
        return Check(variable, status, f"{described}, not writable", f"Make it writable; only {RAW} may be read-only.")
    if free < MIN_FREE_DISK:
        return Check(
            variable, "warning", described, "Free some disk space; preprocessed data sets take many gigabytes."
        )
    return Check(variable, "ok", described)


def check_mirroring(preprocessed: str | None) -> list[Check]:
    """Plans that mirror left and right although labels tell them apart; nothing where there are none.

    Args:
        preprocessed: nnU-Net's folder of preprocessed data; None or empty where it is not set.
    """
    checks = []
    for description in sorted(Path(preprocessed).glob(f"Dataset*/{DATASET_FILE}") if preprocessed else ()):
        folder, dataset_json = description.parent, read_json(description)
        for plans in map(read_json, sorted(folder.glob("*Plans*.json"))):
            advice = mirroring_advice(plans, dataset_json) if "configurations" in plans else ""
            if advice:
                checks.append(Check("mirroring", "warning", f"{folder.name}, {plans['plans_name']}", advice))
    return checks


def check_shared_memory(folder: Path) -> Check:
    """Shared memory, through which data loading workers pass batches."""
    if not folder.is_dir():
        return Check("shared memory", "ok", f"no {folder} on this system")
    free = shutil.disk_usage(folder).free
    if free < MIN_SHARED_MEMORY:
        advice = "Training may hang. In Docker, start the container with --shm-size=8g or --ipc=host."
        return Check("shared memory", "warning", f"{_gib(free)} GiB free", advice)
    return Check("shared memory", "ok", f"{_gib(free)} GiB free")


def check_machine(cores: int, memory: int | None) -> Check:
    """Cores that this process may use, and main memory in bytes.

    Args:
        cores: number of them.
        memory: None where it is not known.
    """
    value = f"{cores} cores" + (f", {_gib(memory)} GiB memory" if memory is not None else "")
    if cores < MIN_CORES:
        advice = f"Data loading and topology will be slow. Run: export nnUNet_n_proc_DA={max(1, cores - 1)}"
        return Check("machine", "warning", value, advice)
    return Check("machine", "ok", value)


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int | None:
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    if not hasattr(os, "sysconf") or any(name not in os.sysconf_names for name in names):
        return None
    return os.sysconf(names[0]) * os.sysconf(names[1])


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"
