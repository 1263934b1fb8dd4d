"""The terminal that commands print tables to."""

from __future__ import annotations

import sys

from rich.console import Console


def console() -> Console:
    """The terminal; a pipe gets the whole width of a table instead of a cut one."""
    return Console(width=None if sys.stdout.isatty() else 200)
