"""The root of the settings: one object of typed sections, built once in each process and passed on."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from florilegium import catalogue
from florilegium.config.clients import ClientsSettings
from florilegium.config.data import DataSettings
from florilegium.config.diffusion import DiffusionSettings, TuneSettings
from florilegium.config.errors import SettingsError
from florilegium.config.fields import section, setting
from florilegium.config.instances import hints, section_of, to_plain, typed
from florilegium.config.privacy import DefenceSettings, PrivacySettings
from florilegium.config.run import LOG_LEVELS, MANY, Attack, Cohort, EvaluationSettings, Runtime, Timeouts
from florilegium.config.sinks import SinkSettings
from florilegium.config.wire import WireSettings

MAIN = "method"  # the arm of conf.method itself
SIDES = ("server", "client")
# settings that a resumed run may change, whole sections and keys of `clients`; `rounds` may only grow
FREE = {"resume", "out", "run_id", "rounds", "runtime", "assets", "timeouts", "sinks", "log_level"}
FREE_CLIENTS = {"device", "threads", "state_dir"}


class Arm:
    """One compared method of a run: its name, and the settings of its two sides as the method's own classes.

    A side's settings are made when they are first asked for, so that a client loads no server code. `shared` are keys
    beside the two sides, which stand for one value that both sides have.
    """

    def __init__(self, values: Mapping[str, Any], arm: str) -> None:
        if not isinstance(values, Mapping) or not values.get("name"):
            raise SettingsError(f"{arm}.name is missing: the name of a method, as `florilegium methods` lists them")
        self.arm, self.name = arm, str(values["name"])
        self.shared = {key: value for key, value in values.items() if key not in ("name", *SIDES)}
        self._values: dict[str, Any] = {side: deepcopy(values[side] or {}) for side in SIDES if side in values}
        self._made: dict[str, Any] = {}

    @property
    def key(self) -> str:
        """Where the arm stands in the settings."""
        return self.arm if self.arm == MAIN else f"references.{self.arm}"

    @property
    def server(self) -> Any:
        """The settings of the server side. SettingsError names a key that is wrong."""
        return self._side("server")

    @property
    def client(self) -> Any:
        """The settings of the client side; None for a method without clients. SettingsError."""
        return self._side("client")

    def _side(self, side: str) -> Any:
        if side not in self._made:
            try:
                Side: Any = catalogue.side(self.name, side)
            except catalogue.CatalogueError as error:
                raise SettingsError(f"{self.arm}: {error}") from error
            if Side is None and self._values.get(side):
                raise SettingsError(f"{self.key}.{side}: {self.name} has no {side} side, so it has no such settings")
            where = f"{self.key}.{side}"
            self._made[side] = None if Side is None else typed(Side.Settings, self._values.get(side), where)
        return self._made[side]

    def value(self, side: str, key: str, default: Any = None) -> Any:
        """One value of a side, without loading the side's code."""
        made = self._made.get(side)
        return self._values.get(side, {}).get(key, default) if made is None else getattr(made, key, default)

    def fill(self, key: str, **values: Any) -> None:
        """Give values to the sub-section `key` of each side that has it, where the side has none or null."""
        self._values = {side: given for side, given in self.plain().items() if side in SIDES}
        for given in self._values.values():
            if isinstance(there := given.get(key), dict):
                there.update({name: value for name, value in values.items() if not there.get(name)})
        self._made.clear()

    def plain(self) -> dict[str, Any]:
        """The arm as plain values, a side that was not asked for as it was given."""
        sides = {side: to_plain(made) for side, made in self._made.items() if made is not None}
        return {"name": self.name, **self.shared, **self._values, **sides}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arm) and self.plain() == other.plain()

    def __repr__(self) -> str:
        return f"Arm({self.plain()!r})"


@section
class Settings:
    """Every setting of a run. `florilegium settings KEY` describes one, `florilegium run --cfg job` prints all."""

    rounds: int = setting(4, "number of rounds", low=0, high=MANY)
    seed: int = setting(
        0, "everything random derives from it: partition, cohorts, images, noise, training", low=0, high=2**31 - 1
    )
    out: str | None = setting(None, "run directory; null: runs/<time>-<method>-<data>-s<seed>")
    run_id: str | None = setting(
        None,
        "what tells this run's memory at its clients from that of other runs; the launcher makes it once and "
        "resume=true keeps it, it is not for users. null: the name of the run directory",
    )
    resume: bool = setting(False, "continue the run in `out` after its last finished round")
    label: str | None = setting(None, "name of the main method in tables; null: its own name")
    log_level: str = setting("info", "lowest level of log.jsonl in the run directory", choices=LOG_LEVELS)
    assets: str | None = setting(None, "directory of the assets; the launcher sets it, it is not for users")
    evaluation: EvaluationSettings = setting(factory=EvaluationSettings, help="how often methods are evaluated")
    cohort: Cohort = setting(factory=Cohort, help="who is asked in a round")
    timeouts: Timeouts = setting(factory=Timeouts, help="deadlines of the clients' replies")
    tuning: TuneSettings = setting(factory=TuneSettings, help="how the server fine-tunes its T2I model")
    data: DataSettings = setting(factory=DataSettings, help="the data set")
    clients: ClientsSettings = setting(factory=ClientsSettings, help="the clients and their models")
    diffusion: DiffusionSettings = setting(factory=DiffusionSettings, help="the text-to-image model")
    runtime: Runtime = setting(factory=Runtime, help="where the clients run")
    sinks: SinkSettings = setting(factory=SinkSettings, help="where records go beside the run directory")
    wire: WireSettings = setting(factory=WireSettings, help="how numbers and images are written in messages")
    privacy: PrivacySettings = setting(factory=PrivacySettings, help="differential privacy")
    defence: DefenceSettings = setting(factory=DefenceSettings, help="defences against bad clients")
    attack: Attack = setting(factory=Attack, help="simulated attacks, to measure defences")
    method: Any = setting(None, "the method: its name, and the settings of its server and its client side")
    references: dict[str, Any] = setting(factory=dict, help="other methods that run after it, by a name for each")

    def arms(self) -> dict[str, Arm]:
        """The arms of the run: the main method, then its references in their order."""
        if not isinstance(self.method, Arm):
            self.method = Arm(self.method, MAIN)
        given = self.references.items()
        self.references = {name: each if isinstance(each, Arm) else Arm(each, name) for name, each in given}
        return {MAIN: self.method, **self.references}

    def plain(self) -> dict[str, Any]:
        """The settings as plain dicts, lists and values; `settings_of` undoes it."""
        return to_plain(self)


def lasting(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of plain settings those that a run keeps from its start to its end, however often it is resumed."""
    kept = {key: value for key, value in settings.items() if key not in FREE}
    if isinstance(kept.get("clients"), Mapping):
        kept["clients"] = {key: value for key, value in kept["clients"].items() if key not in FREE_CLIENTS}
    if isinstance(kept.get("data"), Mapping):  # `prepared` lies in the run directory, which may have been moved
        kept["data"] = {key: value for key, value in kept["data"].items() if key != "prepared"}
    return kept


def settings_of(values: Mapping[str, Any]) -> Settings:
    """The root object of plain values; what is not given has its default. SettingsError names the key."""
    known = {key: section_of(hint) for key, hint in hints(Settings).items()}
    parts = {  # each by itself: most are as in the settings read before, and need not be read again
        key: typed(known[key], value, key)
        for key, value in values.items()
        if known.get(key) is not None and isinstance(value, Mapping)
    }
    rest = {key: value for key, value in values.items() if key not in ("method", "references", *parts)}
    made = typed(Settings, rest, "")
    for key, part in parts.items():
        setattr(made, key, part)
    made.method, made.references = values.get("method"), dict(values.get("references") or {})
    made.arms()
    return made
