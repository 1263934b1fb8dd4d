"""One writer for a run directory: a lock that ends with the process that holds it, whichever way that ends."""

from __future__ import annotations

from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: two servers on one directory are then the user's to avoid
    fcntl = None  # type: ignore[assignment]

_held: dict[Path, IO[str]] = {}  # the open files: closing one would give its lock up


def hold(path: Path) -> bool:
    """Lock `path` for the rest of this process; False when another process holds it."""
    path = path.resolve()
    if fcntl is None or (path in _held and path.exists()):
        return True
    file = open(path, "a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return False
    _held[path] = file
    return True


def release(path: Path) -> None:
    """Give up the lock on `path`, if this process holds it: its run has ended, but the process goes on."""
    file = _held.pop(path.resolve(), None)
    if file is not None:
        file.close()
