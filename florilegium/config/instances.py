"""Sections as objects: made from plain values with their types checked, and turned into plain values again."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from florilegium.config.errors import SettingsError, first_line, refused

T = TypeVar("T")
PLAIN = frozenset((str, int, float, bool))


@dataclasses.dataclass(frozen=True)
class Given:
    """Values by which a section is found again: they are told apart by their text, in which 1 is not True."""

    text: str
    values: Any = dataclasses.field(compare=False)


def typed(cls: type[T], node: Any, where: str) -> T:
    """`node`, a mapping or None (all defaults), as an instance of the section `cls`; or a copy of an instance.

    SettingsError names the key, below the key `where`, for an unknown key, another type or a value out of range.
    """
    if isinstance(node, cls):
        return deepcopy(node)
    try:
        values = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:
        raise refused(error, where) from error
    return deepcopy(_made(cast(Any, cls), Given(repr(values), values), where))


@lru_cache(maxsize=512)  # OmegaConf takes 20 to 150 ms for a section, and a process reads the same ones again
def _made(cls: Any, given: Given, where: str) -> Any:
    try:
        merged = OmegaConf.merge(schema(cls), given.values or {})
        plain = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise refused(error, where) from error
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{where}: {first_line(error)}" if where else first_line(error)) from error
    return _instance(cls, plain, where)


@lru_cache(maxsize=256)
def schema(cls: Any) -> Any:
    """The section as OmegaConf knows it, with all defaults. It is shared: `merge` and `create` of OmegaConf copy it."""
    return OmegaConf.structured(cls)


def _instance(cls: Any, values: Any, where: str) -> Any:
    """The section of these complete values, its nested sections first, so that an error names the innermost key."""
    known = hints(cls)
    given = {}
    for field in dataclasses.fields(cls):
        key, value = f"{where}.{field.name}" if where else field.name, values[field.name]
        inner = section_of(known[field.name])
        if inner is not None and isinstance(value, Mapping):
            value = _instance(inner, value, key)
        elif inner is not None and isinstance(value, list):
            value = [_instance(inner, each, f"{key}[{n}]") for n, each in enumerate(value)]
        given[field.name] = value
    try:
        return cls(**given)
    except ValueError as error:
        raise SettingsError(f"{where}: {first_line(error)}" if where else first_line(error)) from error


@lru_cache(maxsize=256)
def hints(cls: Any) -> dict[str, Any]:
    """The types of a section's fields, by their names."""
    return typing.get_type_hints(cls)


def section_of(hint: Any) -> Any:
    """The section class in `Section`, `Section | None` or `list[Section]`; None for any other type."""
    if dataclasses.is_dataclass(hint):
        return hint
    if typing.get_origin(hint) in (types.UnionType, typing.Union, list):
        return next((arg for arg in typing.get_args(hint) if dataclasses.is_dataclass(arg)), None)
    return None


def to_plain(value: Any) -> Any:
    """Sections, arms, lists and dicts as plain dicts and lists."""
    if value is None or type(value) in PLAIN:  # most values; the tests below take ten times as long
        return value
    if hasattr(value, "plain") and not dataclasses.is_dataclass(value):
        return value.plain()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(each) for each in value]
    return value


def to_text(section: Any) -> str:
    """A section as JSON text with sorted keys: a key for caches and hashes. `from_text` undoes it."""
    return json.dumps(to_plain(section), sort_keys=True)


def from_text(cls: type[T], text: str, where: str = "") -> T:
    """The section of `to_text`'s text. SettingsError names the key, below the key `where`."""
    return typed(cls, json.loads(text), where)


def to_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(values)))
