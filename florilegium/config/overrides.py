"""Overrides as people type them, made readable for Hydra's grammar; and which of them a sweep expands.

Hydra reads `out=~/runs/x`, `out=My Drive (1)` and `out=a=b` as broken grammar. A value that it cannot read is quoted
here, so that it arrives as it was typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


def parser() -> Any:
    """Hydra's own parser of overrides."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def readable(overrides: Iterable[str], sweeping: bool = False) -> list[str]:
    """Each override as Hydra can read it; unless `sweeping`, a comma in a value is part of the value.

    What is no override (an option such as --cfg) stays as it is, and what cannot be mended too: Hydra names it.
    """
    return [text if text.startswith("-") or "=" not in text else _readable(text, sweeping) for text in overrides]


def _readable(text: str, sweeping: bool) -> str:
    from hydra.errors import HydraException

    reads = parser()
    try:
        found = reads.parse_override(text)
        if sweeping or not found.is_sweep_override() or not _plain_list(text):
            return text
    except HydraException:
        pass
    key, _, value = text.partition("=")
    quoted = f"{key}={quote(value)}"
    try:
        reads.parse_override(quoted)
    except HydraException:
        return text
    return quoted


def _plain_list(text: str) -> bool:
    """Whether the value is words with commas between them, and no function such as range(1,3)."""
    value = text.partition("=")[2]
    return not any(mark in value for mark in "()[]{}'\"")


def quote(value: str) -> str:
    """The value between single quotes; backslashes count double only before a quote, as in Hydra's grammar."""
    inside = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", value)
    return "'" + re.sub(r"(\\+)$", lambda found: found[1] * 2, inside) + "'"


def word(value: str) -> str:
    """A value, or one entry of a list, that Hydra reads as this text: between quotes where it needs them."""
    plain = re.fullmatch(r"[A-Za-z_./~][\w ./~-]*(?<! )", value, re.ASCII)
    return value if plain and value.lower() not in ("null", "true", "false", "nan", "inf") else quote(value)


def key_of(override: str) -> str:
    """`clients.width` of `+clients.width=64`, `clients` of `clients@there=ten`."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def jobs(overrides: Iterable[str]) -> list[list[str]]:
    """The override lists of a sweep's jobs, as Hydra's basic sweeper expands them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parsed = parser().parse_overrides(list(overrides))
    return [list(job) for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]
