"""Where Hydra looks beside conf/: in the packages that bring methods of their own, and in the settings classes."""

from __future__ import annotations

from functools import cache

from florilegium import catalogue
from florilegium.config.method_schemas import register_schemas


@cache
def look_in_other_packages() -> None:
    """Let Hydra find the settings classes and the YAML of other packages' methods, from now on in this process."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class MethodFolders(SearchPathPlugin):
        """Adds the folders after conf/, so that no other package can replace a file of ours."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in catalogue.conf_folders():
                search_path.append(catalogue.GROUP, f"file://{folder}")

    Plugins.instance().register(MethodFolders)
    register_schemas()


def problem_of(overrides: list[str]) -> str | None:
    """What is wrong with a method of another package that these overrides choose; None when nothing is."""
    for override in overrides:
        key, _, value = override.partition("=")
        if key in ("method", "+method"):
            return next((line for name, line in catalogue.problems().items() if name in value.split(",")), None)
    return None
