"""The types of all shared settings for Hydra, so that composition names a wrong key or type."""

from __future__ import annotations

from functools import cache

from florilegium.config.settings import Settings

ROOT = "root_schema"  # its name in Hydra's ConfigStore; conf/config.yaml begins with it


@cache
def register() -> None:
    """Put the types of the root and its sections into Hydra's ConfigStore, from now on in this process."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=ROOT, node=Settings)
