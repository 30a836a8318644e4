"""The benchmark's file: what to compare, on what, how often. Standard library only, so that `status` is quick."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from nnunet_topomae.benchmark.compared import COMPARED
from nnunet_topomae.benchmark.primary import Primary, read_primary
from nnunet_topomae.benchmark.recipes import PLANNERS, Recipe, find_recipe
from nnunet_topomae.config import CONFIGURATION_KEYS, SECTION, TopoMAEConfig, check_settings
from nnunet_topomae.nnunet.folders import nnunet_folder
from nnunet_topomae.nnunet.names import CONFIGURATION, PLANS, check_name


@dataclass(frozen=True)
class BenchmarkSpec:
    """A benchmark.

    Attributes:
        name: the file's name without its ending.
        out: folder of everything that is made.
        datasets: ids of data sets in nnUNet_raw.
        recipes: what to compare.
        baselines: names of the recipes that the others are compared with; the first is the one in figures.
        folds: folds of the data sets' splits.
        seeds: repetitions of every training.
        label_fractions: shares of the labelled training cases to fine-tune on.
        configuration: nnU-Net's.
        device: `cpu` or `cuda`.
        gpu_memory_target: for the planners, in GB; None for each planner's own default.
        settings: plan values for all recipes, such as `finetuning.epochs`.
        tolerance: of NSD, in mm.
        betti: also score Betti numbers.
        preset: plan with the published settings of this preset, which also enter `settings`.
        paper: preset name of data sets by id, to compare with the published numbers.
        slurm: options for sbatch by name, such as `partition`.
        raw: nnU-Net's folder of raw data; None where the variable nnUNet_raw names it.
        held_out: score the data sets' held-out cases (imagesTs, labelsTs) instead of each fold's validation cases.
        embed_images: show images of cases in the report; for data that everybody may see.
        ct_window: lowest and highest HU that images of CT in the report show; None to choose by the labels.
        code: `source`, another code of a stage makes its results new; `version`, another version of the package does.
        title: of the report; empty for the name.
        description: a sentence or two below the report's title.
        environment: variables of nnU-Net's commands, such as `nnUNet_n_proc_DA`.
        primary: the comparison that the benchmark is made for; None makes all comparisons exploratory.
        margin: the smallest difference of the primary comparison that matters; None without one.
    """

    name: str
    out: Path
    datasets: tuple[int, ...]
    recipes: tuple[Recipe, ...]
    baselines: tuple[str, ...]
    folds: tuple[int, ...] = (0, 1, 2, 3, 4)
    seeds: tuple[int, ...] = (0,)
    label_fractions: tuple[float, ...] = (1.0,)
    configuration: str = CONFIGURATION
    device: str = "cuda"
    gpu_memory_target: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 2.0
    betti: bool = False
    preset: str | None = None
    paper: Mapping[str, str] = field(default_factory=dict)
    slurm: Mapping[str, Any] = field(default_factory=dict)
    raw: Path | None = None
    held_out: bool = False
    embed_images: bool = False
    ct_window: tuple[float, float] | None = None
    code: str = "source"
    environment: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    description: str = ""
    primary: Primary | None = None
    margin: float | None = None

    @property
    def baseline(self) -> str:
        """The first baseline."""
        return self.baselines[0]

    @property
    def stated(self) -> dict[str, Any] | None:
        """What the file says beforehand: the primary comparison and its margin; None without one."""
        return None if self.primary is None else {**asdict(self.primary), "margin": self.margin}

    @property
    def planned(self) -> dict[str, list[int]]:
        """The trainings that the file asks for of every recipe: seeds and folds."""
        return {"seeds": sorted(self.seeds), "folds": sorted(self.folds)}

    def raw_folder(self) -> Path:
        """nnU-Net's folder of raw data.

        Raises:
            ValueError: neither the file nor the variable nnUNet_raw names it.
        """
        return nnunet_folder("nnUNet_raw") if self.raw is None else self.raw

    def recipe(self, name: str) -> Recipe:
        """A recipe of this benchmark."""
        return next(recipe for recipe in self.recipes if recipe.name == name)


SECTIONS = ("architecture.", "pretraining.", "topology.", "vectorpose.", "finetuning.")
_LISTS = {"datasets": int, "folds": int, "seeds": int, "label_fractions": float, "ct_window": float}
_TABLES = ("settings", "paper", "slurm", "environment")
_PLAIN = {
    "configuration": str,
    "device": str,
    "gpu_memory_target": float,
    "tolerance": float,
    "betti": bool,
    "preset": str,
    "held_out": bool,
    "embed_images": bool,
    "code": str,
    "title": str,
    "description": str,
    "margin": float,
}


def read_spec(path: Path) -> BenchmarkSpec:
    """Read and check a benchmark's file.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: not TOML, an unknown key, or a value that makes no sense; names the key.
    """
    read = _read_toml(path)
    recipes = _read_recipes(path, read)
    values = _read_values(path, read)
    names = [recipe.name for recipe in recipes]
    if "primary" in read:
        fractions = values.get("label_fractions", BenchmarkSpec.label_fractions)
        values["primary"] = read_primary(path, read["primary"], names, fractions)
    default = values["primary"].against if "primary" in values else names[0]
    baselines = _read_baselines(path, read.get("baseline", default), names)
    spec = BenchmarkSpec(path.stem, _out(path, read), recipes=recipes, baselines=baselines, **values)
    _check(path, spec)
    return spec


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; docs/benchmark.md shows what a benchmark's file looks like")
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    allowed = {*_LISTS, *_TABLES, *_PLAIN, "recipes", "recipe", "baseline", "primary", "out", "raw"}
    if unknown := sorted(set(read) - allowed):
        raise ValueError(f"{path}: unknown key {unknown[0]}; allowed are {', '.join(sorted(allowed))}")
    for key in ("datasets", "recipes"):
        if key not in read:
            raise ValueError(f"{path}: {key} is missing")
    return read


def _read_values(path: Path, read: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        **{key: _read_list(path, key, read[key], kind) for key, kind in _LISTS.items() if key in read},
        **{key: _convert(path, key, read[key], kind) for key, kind in _PLAIN.items() if key in read},
        **{key: _convert(path, key, read[key], dict) for key in _TABLES if key in read},
    }
    values["settings"] = _flatten(values.get("settings", {}))
    for name, value in values.get("environment", {}).items():
        _convert(path, f"environment.{name}", value, str)
    window = values.get("ct_window")
    if window is not None and (len(window) != 2 or window[0] >= window[1]):
        raise ValueError(f"{path}: ct_window = {list(window)} must be the lowest and the highest HU")
    if "raw" in read:
        values["raw"] = (path.parent / _convert(path, "raw", read["raw"], str)).absolute()
    if "preset" in values:
        values["settings"] = {**_preset_settings(path, values["preset"]), **values["settings"]}
        values.setdefault("paper", {str(dataset): values["preset"] for dataset in values["datasets"]})
    return values


def _preset_settings(path: Path, name: str) -> dict[str, Any]:
    """Values of a preset that every recipe takes; the others are for the planner."""
    folder = files("nnunet_topomae.plans") / "presets"
    names = sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name != "schema.json")
    if name not in names:
        raise ValueError(f"{path}: preset = {name!r} is none of {', '.join(names)}")
    read = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return {value["key"]: value["value"] for value in read["values"] if value["key"].startswith(SECTIONS)}


def _out(path: Path, read: Mapping[str, Any]) -> Path:
    out: str = _convert(path, "out", read.get("out", path.stem), str)
    return (path.parent / out).absolute()


def _read_recipes(path: Path, read: Mapping[str, Any]) -> tuple[Recipe, ...]:
    own = _convert(path, "recipe", read.get("recipe", {}), dict)
    allowed = {field.name for field in fields(Recipe)} - {"name"} | {"base"}
    recipes = []
    for name in _read_list(path, "recipes", read["recipes"], str):
        if name not in own:
            recipes.append(find_recipe(name))
            continue
        values = dict(_convert(path, f"recipe.{name}", own[name], dict))
        if unknown := sorted(set(values) - allowed):
            raise ValueError(
                f"{path}: unknown key recipe.{name}.{unknown[0]}; allowed are {', '.join(sorted(allowed))}"
            )
        recipes.append(_own_recipe(path, name, values))
    return tuple(recipes)


def _own_recipe(path: Path, name: str, values: dict[str, Any]) -> Recipe:
    """A recipe of the file: another one with changes, or a trainer."""
    check_name(name, f"{path}: recipe name")
    if "__" in name:
        raise ValueError(f"{path}: recipe name {name!r} may not contain '__'")
    for key in ("trainer", "pretrainer"):
        if key in values:
            check_name(values[key], f"{path}: recipe.{name}.{key}")
    for key, value in values.items():
        kind = {"settings": dict, "adds_pretraining": bool}.get(key, str)
        _convert(path, f"recipe.{name}.{key}", value, kind)
    settings = _flatten(values.pop("settings", {}))
    if "base" in values:
        base = find_recipe(values.pop("base"))
        inherited = {field.name: getattr(base, field.name) for field in fields(Recipe)}
        title = base.title if name == base.name else name
        values = {**inherited, "paper_row": None, "title": title, **values, "name": name}
        return Recipe(**{**values, "settings": {**base.settings, **settings}})
    if "trainer" not in values:
        raise ValueError(f"{path}: recipe.{name} needs a trainer, or a base recipe")
    if values.get("plans", PLANS) not in PLANNERS:
        raise ValueError(f"{path}: recipe.{name}.plans is none of {', '.join(PLANNERS)}")
    return Recipe(**{"title": name, **values, "name": name, "settings": settings})


def _read_baselines(path: Path, value: Any, names: Sequence[str]) -> tuple[str, ...]:
    """One name or several."""
    baselines = _read_list(path, "baseline", [value] if isinstance(value, str) else value, str)
    if unknown := [name for name in baselines if name not in names]:
        raise ValueError(f"{path}: baseline = {unknown[0]!r} is none of the recipes {', '.join(names)}")
    return baselines


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read_list(path: Path, key: str, value: Any, kind: type) -> tuple[Any, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{path}: {key} = {value!r} must be a list of at least one value")
    read = tuple(_convert(path, key, item, kind) for item in value)
    if len(set(read)) < len(read):
        raise ValueError(f"{path}: {key} = {value} names a value twice")
    return read


def _convert(path: Path, key: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{path}: {key} = {value!r} must be of type {kind.__name__}")
    return value


def _check(path: Path, spec: BenchmarkSpec) -> None:
    _check_names(path, spec)
    if spec.device not in ("cpu", "cuda"):
        raise ValueError(f"{path}: device = {spec.device!r} must be cpu or cuda")
    if not all(0 < fraction <= 1 for fraction in spec.label_fractions):
        raise ValueError(f"{path}: label_fractions = {list(spec.label_fractions)} must be above 0 and at most 1")
    if min(spec.folds) < 0 or min(spec.seeds) < 0:
        raise ValueError(f"{path}: folds and seeds must be at least 0")
    if spec.code not in ("source", "version"):
        raise ValueError(f"{path}: code = {spec.code!r} must be source or version")
    _check_titles(path, spec)
    _check_statistics(path, spec)
    reserved = ("finetuning.seed", "finetuning.label_fraction", "finetuning.label_seed", "pretraining.seed")
    for source in (spec.settings, *(recipe.settings for recipe in spec.recipes)):
        if taken := [key for key in reserved if key in source]:
            raise ValueError(f"{path}: {taken[0]} is set by seeds and label_fractions")
    for recipe in spec.recipes:
        _check_settings(path, {**spec.settings, **recipe.settings})
        _check_control(path, spec, recipe)


def _check_titles(path: Path, spec: BenchmarkSpec) -> None:
    """Tables and figures tell recipes apart by their titles."""
    names: dict[str, str] = {}
    for recipe in spec.recipes:
        if (other := names.setdefault(recipe.title, recipe.name)) != recipe.name:
            raise ValueError(
                f"{path}: recipes {other} and {recipe.name} have the same title {recipe.title!r}. Give one of them "
                "another title."
            )


def _check_control(path: Path, spec: BenchmarkSpec, recipe: Recipe) -> None:
    """A recipe that takes as much as another one needs that one here, with a pre-training, to measure it."""
    if recipe.equal_to is None:
        return
    key, takes = ("same_time_as", "long") if recipe.same_time_as else ("same_macs_as", "many multiply-adds")
    other = next((one for one in spec.recipes if one.name == recipe.equal_to), None)
    if other is None or other.pretrainer is None:
        lacks = "is not among the recipes" if other is None else "has no pre-training"
        raise ValueError(
            f"{path}: recipe {recipe.name} takes as {takes} as {recipe.equal_to}, which {lacks}. Add it, or leave "
            f"{recipe.name} out."
        )
    if recipe.pretrainer is not None or recipe.adds_pretraining:
        raise ValueError(f"{path}: recipe {recipe.name} has {key}, so no pretrainer and no adds_pretraining")
    if recipe.same_time_as and recipe.same_macs_as:
        raise ValueError(f"{path}: recipe {recipe.name} has same_time_as and same_macs_as; choose one")


def _check_statistics(path: Path, spec: BenchmarkSpec) -> None:
    if spec.margin is not None and spec.primary is None:
        raise ValueError(f"{path}: margin = {spec.margin} belongs to a primary comparison; name one as primary = [...]")
    if spec.margin is not None and spec.primary is not None:
        share = COMPARED[spec.primary.metric].is_share
        if spec.margin <= 0 or (share and spec.margin >= 1):
            limits = "above 0 and, for this metric, below 1" if share else "above 0"
            raise ValueError(f"{path}: margin = {spec.margin} of {spec.primary.metric} must be {limits}")
    if spec.primary is not None and spec.primary.metric == "betti_error" and not spec.betti:
        raise ValueError(f"{path}: primary names betti_error, which is measured with betti = true only")


def _check_names(path: Path, spec: BenchmarkSpec) -> None:
    """Names become folders and parts of commands: none of them leaves its place.

    Raises:
        ValueError: names the key.
    """
    check_name(spec.name, f"{path}: the file's name without its ending")
    check_name(spec.configuration, f"{path}: configuration")
    for key, folder in (("out", spec.out), ("raw", spec.raw)):
        if folder is not None and not str(folder).isprintable():
            raise ValueError(f"{path}: {key} = {str(folder)!r} contains a line break or a control character")
    for kind, names in (("slurm", spec.slurm), ("environment", spec.environment)):
        for name, value in names.items():
            check_name(name, f"{path}: name of an entry of {kind}")
            if not isinstance(value, str | int | float) or not str(value).isprintable():
                raise ValueError(f"{path}: {kind}.{name} = {value!r} must be a number or one line of text")


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Keys and values of the plan's section, patch and batch; whether the patch fits is known when there is a plan.

    Raises:
        ValueError: an unknown key or a value out of range; names the file.
    """
    sections: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in CONFIGURATION_KEYS:
            *parents, last = key.split(".")
            section = sections
            for parent in parents:
                section = section.setdefault(parent, {}) if isinstance(section, dict) else section
            if not isinstance(section, dict) or isinstance(section.get(last), dict):
                raise ValueError(f"{path}: settings give {key} both a value and keys below it")
            section[last] = value
    try:
        check_settings({key: value for key, value in settings.items() if key in CONFIGURATION_KEYS})
        TopoMAEConfig.from_configuration({SECTION: sections})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
