"""Frozen dataclasses that check their values by the annotations of their fields, however they are made.

A field says its type and, with ``Annotated[type, Rule]``, which values it takes. Supported are `bool`, `int`, `float`,
`str`, `Literal`, tuples of one type, `X | None`, `X | Literal` and other checked classes.
"""

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from math import isfinite
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

Section = TypeVar("Section", bound="Checked")


class Rule(NamedTuple):
    """Which values a field takes.

    Attributes:
        holds: True for these values.
        words: the same in English, for errors and the documentation.
    """

    holds: Callable[[Any], bool]
    words: str


@dataclass(frozen=True)
class Checked:
    """Base of all sections. Lists become tuples and whole numbers become floats where the field says so.

    Attributes:
        NAME: full name of the section in the plan, for error messages.
    """

    NAME: ClassVar[str]

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ValueError: wrong type or out of range, with the value's full name and what is allowed.
        """
        for item in fields(self):
            value = convert(item.type, getattr(self, item.name), f"{self.NAME}.{item.name}")
            object.__setattr__(self, item.name, value)

    @classmethod
    def read(cls: type[Section], values: Any) -> Section:
        """Make the section from plain JSON values; absent keys take their defaults.

        Raises:
            ValueError: no table, an unknown key, or a value that is not allowed.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"plan value {cls.NAME} must be a table of keys, got {values!r}")
        values = cls.in_todays_words(values)
        hints = cls.hints()
        if unknown := sorted(set(values) - set(hints)):
            alike = did_you_mean(closest(unknown[0], hints))
            raise ValueError(f"unknown plan key {cls.NAME}.{unknown[0]}; allowed: {', '.join(sorted(hints))}{alike}")
        return cls(**{key: convert(hints[key], value, f"{cls.NAME}.{key}") for key, value in values.items()})

    @classmethod
    def in_todays_words(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values with keys of earlier versions translated; sections that had others override it."""
        return values

    @classmethod
    def hints(cls) -> dict[str, Any]:
        """Annotations of the fields by key."""
        return {item.name: item.type for item in fields(cls)}


def closest(key: str, keys: Iterable[str]) -> list[str]:
    """The key that is spelt most like this one; empty if none is similar.

    Args:
        key: a key that does not exist.
        keys: those that do.
    """
    return get_close_matches(key, keys, n=1)


def did_you_mean(keys: Sequence[str]) -> str:
    """The end of an error message about a key that does not exist."""
    return f". Did you mean {' or '.join(keys)}?" if keys else ""


def convert(hint: Any, value: Any, name: str) -> Any:
    """Turn one value into the type of its field and check it.

    Args:
        hint: annotation of the field.
        value: a JSON value, or one that has the type already.
        name: for error messages.

    Raises:
        ValueError: wrong type or out of range.
    """
    kind, *rules = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    converted = _as_kind(kind, value, name)
    for rule in rules:
        if converted is not None and not rule.holds(converted):
            raise ValueError(f"plan value {name} = {converted!r} is out of range: {rule.words}")
    return converted


def _as_kind(kind: Any, value: Any, name: str) -> Any:
    """The value in the type of its field; rules aside."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"plan value {name} = {value!r} is not one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (Union, types.UnionType):
        return _as_one_of(arguments, value, name)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"plan value {name} = {value!r} must be a list")
        return tuple(_as_kind(arguments[0], item, name) for item in value)
    if issubclass(kind, Checked):
        return value if isinstance(value, kind) else kind.read(value)
    return _as_scalar(kind, value, name)


def _as_one_of(kinds: Sequence[Any], value: Any, name: str) -> Any:
    """The value as None or one of some words, where these are allowed, else as the type next to them."""
    if value is None and type(None) in kinds:
        return None
    first, *others = sorted((kind for kind in kinds if kind is not type(None)), key=_is_literal)
    words = [word for kind in others for word in get_args(kind)]
    if value in words:
        return value
    if isinstance(value, str) and words:
        raise ValueError(f"plan value {name} = {value!r} must be of type {first.__name__}, or {', '.join(words)}")
    return _as_kind(first, value, name)


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _as_scalar(kind: type, value: Any, name: str) -> Any:
    """A truth value, number or text."""
    if kind is float and type(value) is int:
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"plan value {name} = {value!r} must be of type {kind.__name__}")
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"plan value {name} = {value!r} is out of range: a finite number")
    return value
