"""Write docs/reference/plan-keys.md from the sections in nnunet_topomae/config: `python docs/make_plan_keys.py`."""

import ast
import inspect
import json
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.config.checked import Checked

PAGE = Path(__file__).parent / "reference" / "plan-keys.md"
TYPES = {bool: "true or false", int: "whole number", float: "number", str: "text"}
INTRODUCTION = """\
# Keys of a plan

This page lists all keys of the section `topomae` of a plan's configuration. Absent keys take their defaults. Unknown
keys, and values that are not allowed, are errors. `TopoMAEPlanner` writes all keys into new plans.

`nnunet-topomae plan --set KEY=VALUE` changes keys in a [variant of a plan](../planner.md#variants). The table
`[settings]` of a [benchmark's file](../benchmark.md) changes them for all trainings of the benchmark. Both also take
`patch_size` and `batch_size`.

In the plans file:

```json
"topomae": {"pretraining": {"epochs": 160, "mask_ratio": 0.6}, "topology": {"region": "pool"}}
```

Numbers must be finite. This page is made by `docs/make_plan_keys.py`."""


def meanings(section: type[Checked]) -> dict[str, str]:
    """The text below every field of a section, by key."""
    definition = ast.parse(inspect.getsource(section)).body[0]
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for node, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(below, ast.Expr):
            found[node.target.id] = " ".join(ast.literal_eval(below.value).split())
    return found


def describe(hint: Any) -> tuple[str, str]:
    """Type and allowed values of a field in plain words."""
    kind, *rules = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    name, allowed = _describe_kind(kind)
    return name, ", ".join([*allowed, *(rule.words for rule in rules)])


def _describe_kind(kind: Any) -> tuple[str, list[str]]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "word", [f"`{value}`" for value in arguments]
    if origin in (Union, types.UnionType):
        kinds = [part for part in arguments if part is not type(None)]
        first, *words = sorted(kinds, key=lambda part: get_origin(part) is Literal)
        name, allowed = _describe_kind(first)
        others = [text for part in words for text in _describe_kind(part)[1]]
        return ", or ".join([name, *others, *["null"] * (len(kinds) < len(arguments))]), allowed
    if origin is tuple:
        return f"list of {TYPES[arguments[0]]}s", []
    return TYPES[kind], []


def section_table(name: str, section: type[Checked]) -> str:
    """One section in Markdown."""
    explained, defaults = meanings(section), TopoMAEConfig().to_plan()[name]
    lines = [f"## `{name}`", "", inspect.getdoc(section) or "", ""]
    lines += ["| key | type | default | allowed | meaning |", "|---|---|---|---|---|"]
    for key, hint in section.hints().items():
        kind, allowed = describe(hint)
        cells = (f"`{name}.{key}`", kind, f"`{json.dumps(defaults[key])}`", allowed, explained[key])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    tables = [section_table(name, section) for name, section in TopoMAEConfig.hints().items()]
    return "\n\n".join([INTRODUCTION, *tables]) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
