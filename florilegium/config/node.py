"""The settings of a node: what a site says about itself in the node configuration of its SuperNode.

Flower gives them as `key=value` words with hyphens. They stay at the site. docs/data.md lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florilegium.config.errors import SettingsError, meant
from florilegium.config.fields import section, setting
from florilegium.config.instances import typed

WHERE = "node configuration"
PATHS = ("data-path", "validation-path", "test-path", "public-path", "state-dir")
INTERNAL = ("raise-errors",)  # set by runtime=inprocess, no key for users


@section
class NodeSettings:
    """Every key of a node configuration; with a hyphen for each underscore."""

    partition_id: int | None = setting(None, "which of clients.mix this node is, from 0", low=0)
    client_id: int | None = setting(None, "the same, where Flower's simulation gives partition-id", low=0)
    num_partitions: int | None = setting(None, "how many clients.mix has", low=1)
    data_path: str | None = setting(None, "the site's training rows; none: its part of the federation's data")
    validation_path: str | None = setting(None, "the site's own rows for validation")
    test_path: str | None = setting(None, "the site's own rows for evaluation")
    text_column: str = setting("text", "the column of the text")
    label_column: str = setting("label", "the column of the class")
    image_column: str = setting("image", "the column of the image, or of its path")
    max_pixels: int = setting(1 << 26, "a larger image is refused before it is decoded", low=1, high=1 << 30)
    workers: int = setting(0, "processes that decode images while data are opened; 0: none", low=0, high=64)
    public_path: str | None = setting(None, "where this machine keeps the public set")
    state_dir: str | None = setting(None, "where the client keeps its model between rounds")


def hyphened(name: str) -> str:
    """The key of a field as a node configuration has it."""
    return name.replace("_", "-")


KEYS = tuple(hyphened(name) for name in NodeSettings.__dataclass_fields__)


def node_settings(given: Mapping[str, Any]) -> NodeSettings:
    """The settings in a node configuration. SettingsError names a key that does not exist, and the nearest one, or a
    value of another type or out of range."""
    for key in given:
        if key not in (*KEYS, *INTERNAL):
            raise SettingsError(f"{WHERE}: no key '{key}'{meant(key, KEYS)}; there are {', '.join(KEYS)}")
    values = {key.replace("-", "_"): value for key, value in given.items() if key in KEYS}
    for name, value in values.items():
        try:
            typed(NodeSettings, {name: value}, "")
        except SettingsError as error:
            raise SettingsError(f"{WHERE}: {str(error).replace(name, hyphened(name))}") from error
    return typed(NodeSettings, values, WHERE)


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """A node configuration with values of the right types and absolute paths, before its SuperNode starts.

    SettingsError names a wrong key or value, and a path that does not exist.
    """
    found = node_settings(given)
    values = {key: getattr(found, key.replace("-", "_")) for key in given if key in KEYS}
    for key in PATHS:
        if path := values.get(key):
            place = Path(path).expanduser().resolve()
            if not place.exists():
                raise SettingsError(f"{key}: there is no {place}")
            values[key] = str(place)
    return values
