"""Range checks for settings; each gives one line that names the key and the value."""

from __future__ import annotations

from collections.abc import Collection


def between(key: str, value: float, low: float, high: float) -> None:
    """ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{key} must lie between {low} and {high}, got {value}")


def one_of(key: str, value: object, choices: Collection[object]) -> None:
    """ValueError unless value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(map(str, choices))}, got {value!r}")
