"""One writer for a run directory. The operating system gives the lock up when the process that holds it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_held: dict[Path, FileLock] = {}


def hold(path: Path) -> bool:
    """Lock the file `path` until this process ends or calls `release`. False when another process holds the lock."""
    path = path.resolve()
    if path in _held and path.exists():
        return True
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return False
    _held[path] = lock
    return True


def release(path: Path) -> None:
    """Give up the lock on `path` if this process holds it: the run has ended, but the process goes on."""
    lock = _held.pop(path.resolve(), None)
    if lock is not None:
        lock.release()


@contextlib.contextmanager
def during(path: Path) -> Iterator[bool]:
    """Hold the lock inside the block, and after it if this process held it before. False: another process holds it."""
    before = path.resolve() in _held
    try:
        yield hold(path)
    finally:
        if not before:
            release(path)
