"""The one place where Hydra, Flower's run-config and typed settings meet.

`florilegium run` composes conf/ once and ships the result as JSON in the run-config key `settings`; a bare
`flwr run . --run-config 'overrides="rounds=2 out=/absolute/directory"'` composes in the app instead. Either way `load`
gives the same settings.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from florilegium import assets
from florilegium.config import errors, overrides, reference, schemas
from florilegium.config.errors import SettingsError, first_line, meant
from florilegium.config.instances import typed
from florilegium.config.search_path import look_in_other_packages, problem_of
from florilegium.config.settings import MAIN, SIDES, Arm, Settings, settings_of

__all__ = ["MAIN", "Arm", "Settings", "SettingsError", "first_line", "typed"]
CONF = reference.conf_folder()


def load(run_config: Mapping[str, Any]) -> Settings:
    """The settings of a run from Flower's run-config: `settings` (JSON) wins over `overrides` (Hydra grammar).

    SettingsError for a wrong value, and for `overrides` without an absolute `out`.
    """
    if text := str(run_config.get("settings", "")):
        conf = settings_of(json.loads(text))
    else:
        conf = compose(overrides.readable(shlex.split(str(run_config.get("overrides", "")))))
        # each process loads for itself: a directory named by the time or from its own folder would differ in each
        if not conf.out:
            raise SettingsError("out: give an absolute directory, as in out=/absolute/directory: all processes need it")
        if not Path(conf.out).expanduser().is_absolute():
            raise SettingsError(f"out: give an absolute directory, got {conf.out}: Flower runs this elsewhere")
        conf = complete(conf)
    if conf.assets and assets.VARIABLE not in os.environ and Path(conf.assets).is_dir():
        os.environ[assets.VARIABLE] = conf.assets
    return conf


def compose(given: Iterable[str] = ()) -> Settings:
    """Compose conf/config.yaml with Hydra overrides. SettingsError names a key or choice that is not there."""
    return composed(_by_hydra(list(given)))


def _by_hydra(given: list[str]) -> Any:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    given = prepared(given)
    GlobalHydra.instance().clear()  # a warm Ray actor composes again and again
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", given)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(explain(error)) from error


def prepared(given: Iterable[str]) -> list[str]:
    """The overrides as Hydra takes them, which from now on knows all types and the YAML of other packages.

    `experiment=null` is left out: it chooses nothing, as a run does by itself, but Hydra refuses it. SettingsError for
    a method of another package that cannot be used, and for `GROUP=null` where a choice is needed.
    """
    look_in_other_packages()
    schemas.register()
    given = list(given)
    if line := problem_of(given):
        raise SettingsError(line)
    unset = {f"{group}=null" for group in _optional_groups()}
    for group in (folder.name for folder in CONF.iterdir() if folder.is_dir()):
        if f"{group}=null" in given and f"{group}=null" not in unset:
            choices = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
            raise SettingsError(f"{group}=null: {group} needs a choice; there are {', '.join(choices)}")
    return [text for text in given if text not in unset]


@cache
def _optional_groups() -> list[str]:
    """Groups that have no choice in a plain run."""
    entries: Any = OmegaConf.load(CONF / "config.yaml").defaults
    return [str(key) for entry in entries if OmegaConf.is_dict(entry) for key in entry if entry[key] is None]


def composed(conf: Any) -> Settings:
    """The root object of what Hydra composed, or a root object itself.

    SettingsError names a wrong or missing value and, also in the sections of the methods, an unknown key.
    """
    if isinstance(conf, Settings):
        return conf
    made = _resolved(conf)
    for arm in made.arms().values():
        fields = {name for side in (arm.server, arm.client) if side is not None for name in vars(side)}
        known = {*SIDES, *reference.raw(reference.method_file(arm.name)), *fields}
        if strange := [key for key in arm.shared if key not in known]:
            raise SettingsError(f"{arm.key}.{strange[0]}: {arm.name} has no such setting{meant(strange[0], known)}")
    return made


def _resolved(conf: Any) -> Settings:
    try:
        values: Any = OmegaConf.to_container(conf, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise SettingsError(explain(error)) from error
    return settings_of(values)


def read_yaml(path: Path) -> Settings:
    """The settings that a run directory holds (settings.yaml)."""
    return _resolved(OmegaConf.load(path))


def complete(conf: Settings, job: str = "") -> Settings:
    """A copy with what the machine decides: the run directory, the assets, the clients' state.

    `job` is the sub-directory of a multirun's job below a shared `out`.
    """
    conf = settings_of(plain(conf))
    if conf.resume and not conf.out:
        raise SettingsError("resume=true needs out=DIR, the directory of the run to go on with")
    out = Path(conf.out or default_directory(conf)).expanduser()
    conf.out = str((Path.cwd() / out / job).resolve())
    if conf.data.own:
        conf.data.prepared = str(Path(conf.out, "own-data"))
    _place(conf)
    if conf.runtime.name != "deployment":
        conf.assets = str(assets.root())
        conf.clients.state_dir = conf.clients.state_dir or str(Path(conf.out, "state"))
        for arm in conf.arms().values():  # features of frozen models are shared by all runs that start here
            arm.fill("guidance", cache=str(Path.cwd() / ".cache" / "features"))
    return conf


def _place(conf: Settings) -> None:
    """Make paths absolute: they do not depend on the folder in which a process starts."""
    sections = (
        (conf.data, ("judge",) if conf.data.own else ("path", "judge")),
        (conf.data.public, ("path",)),
        (conf.evaluation.generic, ("data", "extractor")),
        (conf.diffusion, ("model", "captioner", "clip", "distilled")),
        (conf.clients, ("tokenizer", "state_dir")),
        (conf.sinks.tensorboard, ("directory",)),
    )
    for section, keys in sections:
        for key in keys:
            if (value := getattr(section, key)) is not None:
                setattr(section, key, _absolute(value))
    if conf.data.hub:
        conf.data.hub = _local_set(conf.data.hub)
    for domain, place in conf.data.hub_domains.items():
        conf.data.hub_domains[domain] = _local_set(str(place))
    for given in conf.clients.architectures.values():
        for key in {"pretrained", "path"} & set(given or ()):
            given[key] = _absolute(given[key])
    for owner, key in ((conf.data, "path"), *((member, "data") for member in conf.clients.mix)):
        if conf.data.own and (value := getattr(owner, key)):  # whether it is there or not
            setattr(owner, key, os.path.abspath(Path(value).expanduser()))


def _absolute(name: Any) -> Any:
    """The absolute path of a file or directory; the name of an asset or of a hub stays, and so does anything else."""
    if not isinstance(name, str) or not name or _is_asset(name):
        return name
    place = Path(name).expanduser()
    return os.path.abspath(place) if name[0] in "~." or place.exists() else name


def _local_set(name: str) -> str:
    """`id:subset` of a hub as it is; `directory:subset` with the directory's absolute path."""
    place, colon, subset = name.partition(":")
    found = Path(place).expanduser()
    return f"{os.path.abspath(found)}{colon}{subset}" if place[:1] in ("~", ".") or found.is_dir() else name


def _is_asset(name: str) -> bool:
    try:
        return (assets.root() / "models" / name).exists()
    except assets.AssetError:
        return False


def default_directory(conf: Settings) -> str:
    """runs/<time>-<method>-<data>-s<seed>, numbered when that is taken."""
    name = f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{conf.method.name}-{conf.data.name}-s{conf.seed}"
    taken = [n for n in range(2, 1000) if Path(name if n == 2 else f"{name}-{n - 1}").exists()]
    return f"{name}-{len(taken) + 1}" if taken else name


def plain(conf: Settings) -> dict[str, Any]:
    """The settings as plain dicts, lists and values."""
    return conf.plain()


def arms(conf: Settings) -> dict[str, Arm]:
    """The arms of a run: the main method, then its references."""
    return conf.arms()


# -- one-line messages -----------------------------------------------------------------------------------------------


def explain(error: BaseException) -> str:
    """One line for an error of Hydra or OmegaConf."""
    return errors.explain(error, _known_keys)


def explained(error: BaseException) -> str | None:
    """One line for an error of Hydra or OmegaConf; None for any other error."""
    from hydra.errors import HydraException

    return explain(error) if isinstance(error, (HydraException, OmegaConfBaseException)) else None


def _known_keys() -> list[str]:
    """Every dotted key of the default settings, and the names of the groups."""

    def walk(node: Any, above: str) -> Iterable[str]:
        for key, value in node.items():
            yield f"{above}{key}"
            if isinstance(value, dict):
                yield from walk(value, f"{above}{key}.")

    keys = OmegaConf.to_container(_by_hydra([]), resolve=False)
    return [*walk(keys, ""), *(group.name for group in CONF.iterdir() if group.is_dir())]
