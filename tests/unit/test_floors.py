"""The house rules that a machine can check: who imports whom, who prints, how long a file or a function may be."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunet_topomae.nnunet import names

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for folder in ("nnunet_topomae", "trainers", "plans") for path in (ROOT / folder).rglob("*.py"))

PLACES = {
    **dict.fromkeys(("types", "geometry", "masking", "vectors", "config", "files"), 0),
    **dict.fromkeys(("topology", "losses", "architectures", "evaluation"), 1),
    **dict.fromkeys(("nnunet", "data", "training", "datasets"), 2),
    **dict.fromkeys(("trainers", "plans", "ext_trainer"), 3),
    **dict.fromkeys(("benchmark", "reports", "doctor", "commands", "cli"), 4),
}
F0 = {"numpy", "torch", "jaxtyping"}
F1 = F0 | {"timm", "dynamic_network_architectures", "numba", "ot", "scipy", "skimage", "monai"}
F2 = F1 | {"nnunetv2", "batchgenerators", "batchgeneratorsv2", "acvl_utils", "SimpleITK", "threadpoolctl"}
F2 |= {"nibabel", "huggingface_hub", "wandb", "blosc2", "matplotlib", "safetensors", "tqdm"}
LIBRARIES = {0: F0, 1: F1, 2: F2, 3: F2}
NOT_PURE = {"logging", "shutil", "subprocess", "tempfile", "pathlib", "io", "random"}
# The one module of the ground floor that writes.
FILES_MODULE = "nnunet_topomae.files"
TOPOLOGY_BACKENDS = {"cripser", "gudhi"}

LINES_OF_A_TRAINER = 150
LINES_OF_A_FILE = 400
LINES_OF_A_FUNCTION = 60


def name_of(path: Path) -> str:
    """The module's name, with the two root folders where the package has them."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "nnunet_topomae" else ("nnunet_topomae", *parts))


def floor_of(module: str) -> int | None:
    """Floor of a module of ours; None for the version and the hook, which everybody may import."""
    parts = module.split(".")
    if len(parts) < 2 or parts[1] in ("_hook", "__init__", "__version__"):
        return None
    return PLACES[parts[1]]


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            assert node.module is not None
            own = node.module == "nnunet_topomae"
            yield from (f"{node.module}.{alias.name}" if own else node.module for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_keep_to_the_floors(path: Path) -> None:
    module_name = name_of(path)
    floor = floor_of(module_name)
    for module in imports_of(path):
        library = module.partition(".")[0]
        if library == "nnunet_topomae":
            other = floor_of(module)
            assert other is None or floor is None or other <= floor, f"floor {floor} imports {module}"
        elif library in TOPOLOGY_BACKENDS:
            assert name_of(path) == "nnunet_topomae.topology.backends", f"{module} belongs into topology/backends.py"
        elif library in sys.stdlib_module_names:
            assert not (floor in (0, 1, 2, 3) and library == "argparse"), f"floor {floor} reads arguments"
            assert not (floor in (0, 1) and library in NOT_PURE and module_name != FILES_MODULE), (
                f"floor {floor} imports {library}"
            )
        elif floor is None:
            pytest.fail(f"{name_of(path)} is loaded by every `import torch`, it may not import {library}")
        elif floor in LIBRARIES:
            assert library in LIBRARIES[floor], f"floor {floor} imports {library}"


@pytest.mark.parametrize("path", [path for path in FILES if floor_of(name_of(path)) in (0, 1, 2)], ids=name_of)
def test_the_library_neither_prints_nor_opens_in_the_lower_floors(path: Path) -> None:
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    forbidden = {"print", "open", "exit", "input"} if floor_of(name_of(path)) != 2 else {"print", "exit", "input"}
    assert not calls & forbidden


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    limit = LINES_OF_A_TRAINER if path.parent == ROOT / "trainers" else LINES_OF_A_FILE
    assert source.count("\n") <= limit, f"{source.count(chr(10))} lines, at most {limit}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node) or ""
            length = node.end_lineno - node.lineno + 1 - len(docstring.splitlines())  # type: ignore[operator]
            assert length <= LINES_OF_A_FUNCTION, f"{node.name} has {length} lines, at most {LINES_OF_A_FUNCTION}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_of_nnunet_are_named_in_one_place(path: Path) -> None:
    constants = {name: value for name, value in vars(names).items() if name.endswith(("_FILE", "_CHECKPOINT"))}
    assert {names.DATASET_FILE, names.FINAL_CHECKPOINT} <= set(constants.values())
    if name_of(path) == names.__name__:
        return
    texts = {node.value for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)}
    bypassed = [name for name, value in constants.items() if value in texts]
    assert not bypassed, f"take {', '.join(bypassed)} of {names.__name__}"


def test_every_module_has_a_floor() -> None:
    assert len(FILES) > 20
    for path in FILES:
        floor_of(name_of(path))
