"""Florilegium: federated knowledge transfer with text-to-image models, as a Flower app.

`florilegium.run`, `florilegium.load` and `florilegium.compare` are its door from Python.
The rooms and who may import whom: CONTRIBUTING.md.
"""

import logging
import os
from importlib import import_module
from typing import Any

# OpenMP reads it when torch is loaded. Threads that wait shall not spin: on a machine that does anything else, they
# would take the time of those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# bitsandbytes, which diffusers and peft import where it is installed, says at every import that it found no kernel of a
# hub for 4-bit weights. Nothing here has such weights. This one line is left out, on stderr and in log files.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "Failed to load CPU gemm_4bit_forward" not in str(record.msg)
)

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
