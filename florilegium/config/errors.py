"""Errors of the settings as one line each, with the nearest known name where a name is wrong."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable


class SettingsError(ValueError):
    """The settings cannot be run; the one-line message names the key."""


#: keys of earlier versions -> the key that took their place, or what to do instead
RENAMED: dict[str, str] = {
    "lesson_batch": "distill_batch",
    "method.server.image_format": "wire.images",
    "method.server.public.image_format": "wire.images",
}


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def meant(word: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' where something known looks like the word, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def renamed(key: str) -> str | None:
    """One line that names the new key where `key` belongs to an earlier version."""
    for old, new in RENAMED.items():
        if key == old or key.endswith(f".{old}"):
            return f"{key} is now called {key[: len(key) - len(old)]}{new}"
    return None


def refused(error: Exception, where: str = "") -> SettingsError:
    """An error of OmegaConf about one key, in the section `where`, as one line that names the key."""
    key = ".".join(part for part in (where, getattr(error, "full_key", None)) if part)
    if line := renamed(key):
        return SettingsError(line)
    known = getattr(getattr(error, "object_type", None), "__dataclass_fields__", {})
    line = first_line(error)
    if " not in " in line and known:
        line += meant(str(getattr(error, "key", "")), known) or f"; there are {', '.join(known)}"
    return SettingsError(f"{key}: {line}" if key else line)


def explain(error: BaseException, known_keys: Callable[[], Iterable[str]] = lambda: ()) -> str:
    """One line for an error of Hydra or OmegaConf. `known_keys` gives every key there is, for the nearest name."""
    text = str(error)
    if found := re.search(r"Could not find '([^']+)'", text):
        group, _, choice = found[1].rpartition("/")
        choices = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        there = f"; there are {', '.join(choices)}" if choices else ""
        return f"no {group or 'group'} '{choice}'{meant(choice, choices)}{there}"
    if found := re.search(r"Could not override '([^']+)'", text):
        key, known = found[1], list(known_keys())
        if line := renamed(key):
            return line
        if key not in known:
            return f"no setting '{key}'{meant(key, known)}; `florilegium settings` lists them"
    if type(error).__name__ == "OverrideParseException":
        return f"cannot read an override: {first_line(error)}"
    overridden = re.search(r"(?:Could not override|Error merging override) '?([\w.]+)", text)
    cause = error
    while cause is not None and not getattr(cause, "full_key", None):
        cause = cause.__cause__  # type: ignore[assignment]
    if not isinstance(cause, Exception):
        return first_line(error)
    above = overridden[1] if overridden else ""
    inside = above and not str(getattr(cause, "full_key", "")).startswith(above)
    return str(refused(cause, above if inside else ""))
