"""The one place where Hydra, Flower's run-config and typed settings meet.

`florilegium run` composes conf/ once and ships the result as JSON in the run-config key `settings`; a bare
`flwr run . --run-config 'overrides="rounds=2"'` composes in the app instead. Either way `load` gives the same settings.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from florilegium import assets
from florilegium.config import errors
from florilegium.config.errors import SettingsError, first_line
from florilegium.config.instances import typed
from florilegium.config.search_path import look_in_other_packages, problem_of

__all__ = ["SettingsError", "first_line", "typed"]

MAIN = "method"  # the arm of conf.method itself
HERE = Path(__file__).resolve().parents[1]  # florilegium/
CONF = next((place for place in (HERE.parent / "conf", HERE / "conf") if place.is_dir()), HERE.parent / "conf")


# -- reading ---------------------------------------------------------------------------------------------------------


def load(run_config: Mapping[str, Any]) -> DictConfig:
    """The settings of a run from Flower's run-config: `settings` (JSON) wins over `overrides` (Hydra grammar)."""
    if text := str(run_config.get("settings", "")):
        conf = OmegaConf.create(json.loads(text))
    else:
        conf = complete(compose(shlex.split(str(run_config.get("overrides", "")))))
    if conf.get("assets") and assets.VARIABLE not in os.environ and Path(conf.assets).is_dir():
        os.environ[assets.VARIABLE] = conf.assets
    return conf


def compose(overrides: Iterable[str] = ()) -> DictConfig:
    """Compose conf/config.yaml with Hydra overrides. SettingsError names a key or choice that is not there."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    look_in_other_packages()
    if line := problem_of(overrides := list(overrides)):
        raise SettingsError(line)
    GlobalHydra.instance().clear()  # a warm Ray actor composes again and again
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(explain(error)) from error


def complete(conf: DictConfig, job: str = "") -> DictConfig:
    """A resolved copy with what the machine decides: the run directory, the assets, the clients' memory.

    `job` is the sub-directory of a multirun's job below a shared `out`.
    """
    conf = OmegaConf.create(plain(conf))
    if conf.get("resume") and not conf.get("out"):
        raise SettingsError("resume=true needs out=DIR, the directory of the run to go on with")
    with open_dict(conf):
        out = Path(conf.get("out") or default_directory(conf)).expanduser()
        conf.out = str((Path.cwd() / out / job).resolve())
        if conf.runtime.name != "deployment":
            conf.assets = str(assets.root())
            conf.clients.state_dir = conf.clients.get("state_dir") or str(Path(conf.out, "state"))
            _place_features(conf)
    return conf


def _place_features(conf: DictConfig) -> None:
    """Features of frozen models are shared by all runs that start here."""
    for node in arms(conf).values():
        for side in ("server", "client"):
            given = (node.get(side) or {}).get("guidance")
            if given and not given.get("cache"):
                given.cache = str(Path.cwd() / ".cache" / "features")


def default_directory(conf: DictConfig) -> str:
    """runs/<time>-<method>-<data>-s<seed>, numbered when that is taken."""
    name = f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{conf.method.name}-{conf.data.name}-s{conf.seed}"
    taken = [n for n in range(2, 1000) if Path(name if n == 2 else f"{name}-{n - 1}").exists()]
    return f"{name}-{len(taken) + 1}" if taken else name


def plain(conf: DictConfig) -> dict[str, Any]:
    """The settings as a dict, everything resolved. SettingsError names a value that is missing or points nowhere."""
    try:
        values: Any = OmegaConf.to_container(conf, resolve=True, throw_on_missing=True)
        return values
    except OmegaConfBaseException as error:
        raise SettingsError(explain(error)) from error


def arms(conf: DictConfig) -> dict[str, DictConfig]:
    """The arms of a run: the main method, then its references; each a node {name, server, client}."""
    return {MAIN: conf.method, **(conf.get("references") or {})}


# -- one-line messages -----------------------------------------------------------------------------------------------


def explain(error: BaseException) -> str:
    """One line for an error of Hydra or OmegaConf."""
    return errors.explain(error, _known_keys)


def _known_keys() -> list[str]:
    """Every dotted key of the default settings, and the names of the groups."""

    def walk(node: Any, above: str) -> Iterable[str]:
        for key, value in node.items():
            yield f"{above}{key}"
            if isinstance(value, dict):
                yield from walk(value, f"{above}{key}.")

    keys = OmegaConf.to_container(compose(), resolve=False)
    return [*walk(keys, ""), *(group.name for group in CONF.iterdir() if group.is_dir())]
