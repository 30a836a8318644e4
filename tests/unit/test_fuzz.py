"""Random content for what users write: a clear error or a valid value, nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_topomae.benchmark.spec import read_spec
from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.nnunet.plan_checks import check_plans

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
SECTIONS = TopoMAEConfig.hints()
KEYS = sorted({key for section in SECTIONS.values() for key in section.hints()} | {"unknown"})
SECTION = some.dictionaries(
    some.sampled_from([*SECTIONS, "unknown"]),
    VALUES | some.dictionaries(some.sampled_from(KEYS), VALUES, max_size=4),
    max_size=3,
)
QUICK = settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
)


@pytest.mark.slow
@QUICK
@given(VALUES | SECTION)
def test_the_section_of_the_plan(section: Any) -> None:
    try:
        config = TopoMAEConfig.from_configuration({"topomae": section})
    except ValueError as error:
        assert "topomae" in str(error)
    else:
        again = json.loads(json.dumps(config.to_plan()))
        assert TopoMAEConfig.from_configuration({"topomae": again}) == config


CONFIGURATION = ["patch_size", "spacing", "batch_size", "data_identifier", "normalization_schemes", "architecture",
                 "inherits_from"]  # fmt: skip


@pytest.mark.slow
@QUICK
@given(VALUES | some.fixed_dictionaries({
    "dataset_name": VALUES | some.just("D"), "plans_name": VALUES | some.just("P"),
    "configurations": VALUES | some.dictionaries(
        some.sampled_from(["3d_fullres", "other"]), VALUES | some.dictionaries(some.sampled_from(CONFIGURATION), VALUES)
    ),
}))  # fmt: skip
def test_plans(plans: Any) -> None:
    try:
        check_plans(plans, "3d_fullres", "Plans.json")
    except ValueError as error:
        assert str(error).startswith("Plans.json")


def _toml(value: Any) -> str:
    """A value in TOML, which has neither null nor mixed numbers of JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value) if value == value and abs(value) < 1e300 else "nan"
    return json.dumps("" if value is None else value)


TABLE = some.dictionaries(
    some.sampled_from(["datasets", "recipes", "recipe", "baseline", "folds", "settings", "slurm", "environment", "out",
                       "raw", "preset", "paper", "device", "configuration", "title", "label_fractions", "seeds"]),
    VALUES, max_size=4,
)  # fmt: skip


@QUICK
@given(TABLE)
def test_the_file_of_a_benchmark(tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any]) -> None:
    file = Path(tmp_path_factory.getbasetemp()) / "fuzz.toml"
    chosen = {"datasets": [5], "recipes": ["nnunet"], **table}
    file.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in chosen.items()), encoding="utf-8")
    try:
        assert read_spec(file).recipes
    except ValueError as error:
        assert str(file) in str(error) or "no recipe" in str(error)
