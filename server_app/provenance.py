"""Which code made a run: the version, and a hash of every module that the server has."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("client_app", "florilegium", "server_app", "strategies")
# what starts a run, and what tests and notebooks alone need; `fab-exclude` of pyproject.toml has the same
LEFT_OUT = ("florilegium/cli/", "florilegium/contract/", "florilegium/runtime/", "florilegium/report/results.py")


@cache
def code() -> dict[str, str]:
    """{"version", "code"}: the installed version, and SHA-256 over names and contents of our modules (16 digits).

    The same for a simulation, a deployment and a run in one process, if the code is the same.
    """
    digest = hashlib.sha256()
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            continue
        place = Path(spec.origin).parent
        for file in sorted(place.rglob("*.py")):
            told = file.relative_to(place.parent).as_posix()
            if not told.startswith(LEFT_OUT):
                digest.update(f"{told} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    try:
        version = metadata.version("florilegium")
    except metadata.PackageNotFoundError:
        version = "unknown"
    return {"version": version, "code": digest.hexdigest()[:16]}
