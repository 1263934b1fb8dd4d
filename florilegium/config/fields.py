"""How a section of the settings is written: a dataclass whose fields hold default, help text, range and choices.

    @section
    class Cohort:
        "Who is asked in a round."

        fraction: float = setting(1.0, "share of the clients asked in a round", low=0, high=1)

Making an instance checks every field against its range and choices, then what `__post_init__` checks across fields.
`florilegium settings KEY` prints the help text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform

from florilegium.config.bounds import between, one_of

T = TypeVar("T")


def setting(
    default: Any = MISSING,
    help: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Collection[object] | None = None,
    factory: Callable[[], Any] | None = None,
) -> Any:
    """A field of a section. `low`, `high` (inclusive) and `choices` hold for each entry of a list; None values
    pass the range.

    `factory` makes the default of a list, dict or nested section.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": None if choices is None else tuple(choices)}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass_transform()  # no field specifiers: a type checker would look for the default among their keywords only
def section(cls: type[T]) -> type[T]:
    """Make `cls` a dataclass that checks its fields. ValueError, naming the field, for a value out of range."""
    across: Callable[[Any], None] | None = cls.__dict__.get("__post_init__") or getattr(cls, "__post_init__", None)

    def check(self: Any) -> None:
        for f in fields(self):
            check_value(f.name, getattr(self, f.name), f.metadata)
        if across is not None:
            across(self)

    cls.__post_init__ = check  # type: ignore[attr-defined]
    return dataclass(cls)


def check_value(name: str, value: Any, metadata: Any) -> None:
    """ValueError, naming the field, unless the value (each entry of a list) is in its range or among its choices."""
    low, high, choices = metadata.get("low"), metadata.get("high"), metadata.get("choices")
    if choices is not None:
        for one in value if isinstance(value, list) else [value]:
            one_of(name, one, choices)
    if value is None or (low is None and high is None):
        return
    for number in value if isinstance(value, (list, tuple)) else [value]:
        between(name, number, float("-inf") if low is None else low, float("inf") if high is None else high)
