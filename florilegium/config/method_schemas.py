"""The settings of each method as a structured config for Hydra: `/schema/NAME`, with all defaults and types.

A method's YAML begins with `- /schema/NAME@_here_` and then says only what differs. Hydra's ConfigStore would hold the
same, but it wants all of them beforehand, and with them the code of all methods; this source loads a method when it is
chosen.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from florilegium import catalogue
from florilegium.config import instances

SCHEME, FOLDER, ENDING = "florilegium", "schema", ".yaml"
PLACE = f"{SCHEME}://"  # in Hydra's search path


def schema(method: str) -> DictConfig:
    """The defaults of a method's two sides, by side; each value has its type. CatalogueError."""
    sides = {side: catalogue.side(method, side) for side in ("server", "client")}
    return OmegaConf.create(
        {side: _tables(instances.schema(Side.Settings)) for side, Side in sides.items() if Side is not None}
    )


def _tables(config: Any) -> dict[str, Any]:
    """The typed values of a section in plain tables, since OmegaConf lets no `t2i: ${tuning}` replace a typed one."""
    nodes = {str(key): config._get_node(key) for key in config}
    return {key: _tables(node) if is_dataclass(OmegaConf.get_type(node)) else node for key, node in nodes.items()}


def _method(path: str) -> str:
    """The method in `schema/NAME`, with or without the ending of a file; empty for any other path."""
    folder, _, name = path.strip("/").removesuffix(ENDING).partition("/")
    return name if folder == FOLDER and name in catalogue.entries() else ""


@cache
def register_schemas() -> None:
    """Let Hydra find `/schema/NAME`, from now on in this process."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.object_type import ObjectType
    from hydra.core.plugins import Plugins
    from hydra.plugins.config_source import ConfigResult, ConfigSource
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class MethodSchemas(ConfigSource):
        """One group, `schema`, with one config for each method."""

        @staticmethod
        def scheme() -> str:
            return SCHEME

        def load_config(self, config_path: str) -> ConfigResult:
            config = schema(_method(config_path))
            return ConfigResult(provider=self.provider, path=PLACE, config=config, header={"package": None})

        def available(self) -> bool:
            return True

        def is_group(self, config_path: str) -> bool:
            return config_path.strip("/") in ("", FOLDER)

        def is_config(self, config_path: str) -> bool:
            return bool(_method(config_path))

        def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
            """Nothing: `schema` is no group for users, so neither help nor completion shows it."""
            return []

    class SchemaFolder(SearchPathPlugin):
        """Adds the source after conf/."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            search_path.append(SCHEME, PLACE)

    Plugins.instance().register(MethodSchemas)
    Plugins.instance().register(SchemaFolder)
