"""Florilegium: federated knowledge transfer with text-to-image models, as a Flower app.

`florilegium.run`, `florilegium.load` and `florilegium.compare` are its door from Python.
The rooms and who may import whom: CONTRIBUTING.md.
"""

from importlib import import_module
from typing import Any

DOORS = {  # loaded when they are first used, so that importing florilegium imports nothing heavy
    "run": "florilegium.runtime.from_python",
    "load": "florilegium.report.results",
    "compare": "florilegium.report.results",
}
__all__ = ["compare", "load", "run"]


def __getattr__(name: str) -> Any:
    if name in DOORS:
        return getattr(import_module(DOORS[name]), name)
    raise AttributeError(f"module 'florilegium' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *DOORS])
