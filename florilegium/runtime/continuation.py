"""`resume=true`: a run goes on with the settings that its directory holds, so that nobody has to repeat them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from florilegium.config import composition, overrides
from florilegium.config.errors import SettingsError, meant
from florilegium.config.settings import FREE, FREE_CLIENTS, Settings

LONGEST_NAME = 60  # of a run directory in a `run_id`, which is the name of a folder itself


def continued(conf: Settings, given: Iterable[str], folder: str = "", sweep: Iterable[str] = ()) -> Settings:
    """The settings to go on with: those of the run in `folder` below `conf.out`, changed by the overrides in `given`.

    Where `given` has more than a resumed run may change, `conf` itself; the run then names what differs. So too for a
    job that never began of a sweep that did: one of its folders, `sweep`, is there.
    SettingsError when there is no run in that directory; it names a directory that may have been meant.
    """
    if not conf.out:
        raise SettingsError("resume=true needs out=DIR, the directory of the run to go on with")
    out = Path(conf.out).expanduser() / folder
    if not out.is_dir():
        if any(Path(conf.out, name).expanduser().is_dir() for name in sweep):
            return begun(conf)
        beside = [path.name for path in out.parent.iterdir() if path.is_dir()] if out.parent.is_dir() else []
        raise SettingsError(f"out: there is no run in {out} to go on with{meant(out.name, beside)}")
    if not (out / "settings.yaml").is_file():  # it ended before its first round began: nothing to go on with
        return begun(conf)
    keys = [overrides.key_of(text) for text in given if "=" in text and not text.startswith("-")]
    saved = composition.read_yaml(out / "settings.yaml")
    if not all(may_change(key) for key in keys):
        conf.run_id = saved.run_id
        return conf
    if saved.clients.state_dir and saved.out and Path(saved.clients.state_dir) == Path(saved.out, "state"):
        saved.clients.state_dir = None  # the directory may have been moved
    for key in sorted(keys, key=lambda key: key.count(".")):  # runtime=local before runtime.keep=true
        _take(saved, conf, key.split("."))
    saved.out, saved.resume = conf.out, True
    return saved


def begun(conf: Settings) -> Settings:
    """The settings with a `run_id` that no other run has, unless they have one: clients keep a run's memory by it.

    Two runs may have directories of one name, and a run may take the place of one that was removed.
    """
    name = Path(conf.out).name if conf.out else "run"
    conf.run_id = conf.run_id or f"{name[:LONGEST_NAME]}-{uuid.uuid4().hex[:12]}"
    return conf


def _take(to: Any, of: Any, path: list[str]) -> None:
    """Set the value at the end of a dotted key to that of `of`; what lies beside it stays."""
    for name in path[:-1]:
        to, of = _at(to, name), _at(of, name)
    if isinstance(to, dict):
        to[path[-1]] = _at(of, path[-1])
    else:
        setattr(to, path[-1], _at(of, path[-1]))


def _at(node: Any, name: str) -> Any:
    return node[name] if isinstance(node, dict) else getattr(node, name)


def may_change(key: str) -> bool:
    """Whether a resumed run may have another value of this dotted key."""
    section, _, name = key.partition(".")
    return section in FREE or (section == "clients" and name in FREE_CLIENTS)
