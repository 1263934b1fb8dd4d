"""The terminal that all commands print to."""

from __future__ import annotations

import sys
from typing import Any


def console() -> Any:
    """The terminal; a pipe gets the whole width of a table instead of a cut one."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200)
