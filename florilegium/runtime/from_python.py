"""`florilegium.run`: a run that is started from Python or from a notebook."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from florilegium.config import composition
from florilegium.config.overrides import quote, readable
from florilegium.report.results import RunResults
from florilegium.runtime import launch

RUNTIME = "runtime=inprocess"


def run(*overrides: str, **settings: Any) -> RunResults:
    """Run a method in this process and give its results.

        run = florilegium.run("method=NAME", rounds=2)

    Args:
        *overrides: Hydra overrides, as `florilegium run` takes them: "data=emoji", "clients.width=64".
        **settings: The same as keywords. A value may be a string, a number, a bool, None, a list, or a dict, which
            sets the keys below: `cohort={"fraction": 0.5}` is "cohort.fraction=0.5".

    `runtime=simulation` and the others start Flower's processes instead, as the command does. Each finished round is
    printed as one line.

    Raises:
        SettingsError: The settings cannot be run. The line names the key.
        AssetError: Data or a model is not there.
        RunError: The run directory cannot be written, or holds another run.
        LaunchError: The run began and could not go on.
        TypeError: A setting is of a type that YAML does not have.
    """
    given = [RUNTIME, *readable(overrides), *keywords(settings)]
    directory, conf = launch.prepare(composition.compose(given), given=given)
    launch.run_job(conf)
    return RunResults(directory)


def keywords(settings: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Keyword settings as Hydra overrides."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from keywords(value, f"{above}{key}.")
        else:
            yield f"{above}{key}={written(value, f'{above}{key}')}"


def written(value: Any, key: str) -> str:
    """`value` in Hydra's grammar. TypeError names `key` for what YAML does not have."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()  # a number of NumPy
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, os.PathLike)):
        return quote(os.fspath(value))
    if isinstance(value, Mapping):
        if odd := [k for k in value if not re.fullmatch(r"[\w.-]+", str(k))]:
            raise TypeError(f"{key}: a key below a setting is a plain word, got {odd[0]!r}")
        return "{" + ", ".join(f"{k}: {written(v, f'{key}.{k}')}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(written(item, f"{key}[{n}]") for n, item in enumerate(value)) + "]"
    raise TypeError(f"{key}: a setting is a string, number, bool, None, list or dict, got {type(value).__name__}")
