"""What every key of the settings means: type, default, range, choices, help, and the YAML files that set it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from florilegium import catalogue
from florilegium.config.errors import SettingsError, meant, renamed
from florilegium.config.instances import hints, section_of, to_plain
from florilegium.config.settings import MAIN, SIDES, Settings

#: groups of conf/ whose settings do not lie under the group's own name
PLACES = {
    "architectures": "clients.architectures",
    "partition": "clients.partition",
    "guidance": "method.client.guidance",
    "fidelity": "method.divergences",
    "experiment": "",
}


@dataclasses.dataclass(frozen=True)
class Described:
    """One key. `default` is a plain value; a `section` has keys of its own."""

    key: str
    type: str
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] | None = None
    section: bool = False

    @property
    def range(self) -> str:
        """The allowed values in words; empty where any value of the type may be given."""
        if self.choices is not None:
            return ", ".join("null" if choice is None else str(choice) for choice in self.choices)
        if self.low is None and self.high is None:
            return ""
        low, high = (None if end is None else number(end) for end in (self.low, self.high))
        return f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}"


def number(value: float) -> str:
    """A bound as people write it: 1,000,000 and 0.001, not 1e+06 and 1e-03."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.12f}".rstrip("0")


def described(cls: Any, where: str = "", defaults: Any = None) -> Iterator[Described]:
    """Every key of a section class, those of its sections after each; `defaults` is an object that has the defaults."""
    types = hints(cls)
    defaults = defaults if isinstance(defaults, cls) else cls()
    for field in dataclasses.fields(cls):
        key = f"{where}.{field.name}" if where else field.name
        inner, facts = section_of(types[field.name]), field.metadata
        default = getattr(defaults, field.name)
        words = str(field.type).replace("Any", "any value")
        yield Described(
            key,
            words,
            to_plain(default),
            facts.get("help") or (inner and first_sentence(inner)) or "",
            facts.get("low"),
            facts.get("high"),
            facts.get("choices"),
            inner is not None,
        )
        if inner is not None:
            yield from described(inner, f"{key}[]" if words.startswith("list") else key, default)


def first_sentence(cls: Any) -> str:
    """The first sentence of a class's docstring."""
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def of_method(method: str) -> Iterator[Described]:
    """Every key of `method` when this method is chosen. SettingsError for a method that is not there."""
    yield Described(f"{MAIN}.name", "str", method, "the method, one of `florilegium methods`")
    found = []
    for side in SIDES:
        try:
            Side: Any = catalogue.side(method, side)
        except catalogue.CatalogueError as error:
            raise SettingsError(f"method: {error}") from error
        if Side is not None:
            key = f"{MAIN}.{side}"
            found.append(Described(key, Side.Settings.__name__, {}, first_sentence(Side.Settings), section=True))
            found += described(Side.Settings, key)
    yield from shared(method, {each.key: each for each in found})
    yield from found


def shared(method: str, found: Mapping[str, Described]) -> Iterator[Described]:
    """Keys of a method's YAML beside its two sides; each stands for the settings that refer to it."""
    leaves = dict(flat(raw(method_file(method)), MAIN))
    refers = (re.fullmatch(rf"\$\{{{MAIN}\.(\w+)\}}", str(value)) for value in leaves.values())
    for name in dict.fromkeys(match[1] for match in refers if match):
        those = [key for key, value in leaves.items() if value == f"${{{MAIN}.{name}}}" and key in found]
        if those:
            same = found[those[0]]
            words = f"one value for {' and '.join(those)}: {same.help}"
            yield dataclasses.replace(same, key=f"{MAIN}.{name}", help=words)
            yield from (
                dataclasses.replace(each, key=f"{MAIN}.{name}{key[len(those[0]) :]}")
                for key, each in found.items()
                if key.startswith(f"{those[0]}.")
            )


def method_file(method: str) -> Path:
    """The YAML file of a method, ours or another package's."""
    folders = [conf_folder(), *catalogue.conf_folders()]
    return next((folder / "method" / f"{method}.yaml" for folder in folders if _has(folder, method)), Path())


def _has(folder: Path, method: str) -> bool:
    return (folder / "method" / f"{method}.yaml").exists()


def conf_folder() -> Path:
    """conf/ of a checkout, or the copy of it that a wheel brings."""
    here = Path(__file__).resolve().parents[1]  # florilegium/
    return next((place for place in (here.parent / "conf", here / "conf") if place.is_dir()), here.parent / "conf")


def every(method: str) -> dict[str, Described]:
    """All keys there are when `method` is chosen, by their names."""
    return {each.key: each for each in [*described(Settings), *of_method(method)]}


def look_up(key: str, method: str) -> tuple[Described, list[Described]]:
    """A key, and the keys of the section that it names. SettingsError with the nearest name for one that is not there.

    `clients.mix[0].model` and `clients.mix.0.model` are the same key; a key below a free table is the table's.
    """
    ours = key.partition(".")[0] != MAIN  # then no method is loaded
    known = {each.key: each for each in described(Settings)} if ours else every(method)
    plain = re.sub(r"\[\d*\]|\.\d+(?=\.|$)", "[]", key)
    if plain.endswith("[]"):
        plain = plain[:-2]
    above = plain
    while above not in known and "." in above:
        above = above.rpartition(".")[0]
        if above in known and known[above].type.startswith("dict"):
            return dataclasses.replace(known[above], key=key), []
    if plain not in known:
        hint = meant(plain, known) or (meant(plain.rpartition(".")[2], (k.rpartition(".")[2] for k in known)))
        raise SettingsError(renamed(key) or f"no setting '{key}'{hint}; `florilegium settings` lists the sections")
    below = [each for name, each in known.items() if name.startswith((f"{plain}.", f"{plain}[]"))]
    return known[plain], below


# -- where a key is set ------------------------------------------------------------------------------------------------


def set_in(key: str, method: str) -> list[tuple[str, Any]]:
    """(file of conf/, value) of each file that gives the key a value, where `method` is the chosen method."""
    folder, found = conf_folder(), []
    for path in sorted(folder.rglob("*.yaml")):
        group = str(path.parent.relative_to(folder))
        if key.startswith(f"{MAIN}.") and group in ("method", "experiment") and method not in (path.stem, chosen(path)):
            continue
        place = "" if group == "." else PLACES.get(group, group)
        value = dict(flat(raw(path), place, inner=True)).get(key)
        if value is not None:
            found.append((str(Path("conf", path.relative_to(folder))), value))
    return found


def chosen(preset: Path) -> str:
    """The method that a preset chooses; that of a plain run where it chooses none."""
    for file in (preset, conf_folder() / "config.yaml"):
        values: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        for each in values.get("defaults") or []:
            for group, choice in {} if isinstance(each, str) else each.items():
                if group.split()[-1].strip("/") == MAIN:
                    return str(choice)
    return ""


def raw(path: Path) -> dict[str, Any]:
    """A YAML file as it stands, without resolving anything."""
    if not path.is_file():
        return {}
    values: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return {key: value for key, value in values.items() if key not in ("defaults", "hydra")}


def flat(values: Any, where: str, inner: bool = False) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of each leaf, with `inner` also of each table."""
    for name, value in values.items():
        key = f"{where}.{name}" if where else str(name)
        if isinstance(value, dict):
            if inner:
                yield key, value
            yield from flat(value, key, inner)
        else:
            yield key, value
