"""The command lines of Flower's processes. The one place that knows how releases differ.

Up to 1.39 the Fleet API, the only one that sites see, speaks gRPC on a port of its own, and the Control and Runtime
APIs share another. From 1.40 all three are HTTP on one port, and a proxy has to keep sites to `/v1/fleet/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

LAST_GRPC = (1, 39)
CONTROL_PORT, FLEET_PORT = 9093, 9092  # what our containers listen on


def fleet_is_grpc(release: str | None = None) -> bool:
    """Whether the installed flwr (or `release`) has a Fleet port of its own."""
    major, minor = (release or version("flwr")).split(".")[:2]
    return (int(major), int(minor)) <= LAST_GRPC


def superlink(keys: Path, host: str, port: int, fleet: str, database: Path, isolated: bool) -> list[str]:
    """`flower-superlink` with TLS and node authentication; `isolated`: server apps run in a SuperExec elsewhere."""
    command = [
        "flower-superlink",
        "--ssl-ca-certfile",
        str(keys / "ca.crt"),
        "--ssl-certfile",
        str(keys / "server.crt"),
        "--ssl-keyfile",
        str(keys / "server.key"),
        "--enable-supernode-auth",
        "--database",
        str(database),
        "--host",
        host,
        "--port",
        str(port),
    ]
    if fleet_is_grpc():
        command += ["--fleet-api-address", fleet]
    if isolated:
        command += ["--isolation", "process", "--superexec-auth-secret-file", str(keys / "superexec.secret")]
    return command


def serverapp(keys: Path, address: str) -> list[str]:
    """`flower-superexec`, which runs the server apps of the SuperLink whose Runtime API is at `address`."""
    return [
        "flower-superexec",
        "--root-certificates",
        str(keys / "ca.crt"),
        "--runtime-api-address",
        address,
        "--superexec-auth-secret-file",
        str(keys / "superexec.secret"),
    ]


def supernode(keys: Path, address: str, port: int, config: Mapping[str, str | int]) -> list[str]:
    """`flower-supernode` of the site with these keys, for the SuperLink whose Fleet API is at `address`."""
    return [
        "flower-supernode",
        *(["--grpc-rere"] if fleet_is_grpc() else []),
        "--superlink",
        address,
        "--root-certificates",
        str(keys / "ca.crt"),
        "--auth-supernode-private-key",
        str(keys / "node.key"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--node-config",
        node_config(config),
    ]


def node_config(values: Mapping[str, str | int]) -> str:
    """Flower's `key=value ...`, strings as TOML strings."""
    return " ".join(f"{key}={value if isinstance(value, int) else _toml(value)}" for key, value in values.items())


def _toml(value: str) -> str:
    """A string in double quotes. Flower ends it at the first quotation mark, so that one inside is an escape."""
    return '"' + json.dumps(value, ensure_ascii=False)[1:-1].replace('\\"', "\\u0022").replace("\x7f", "\\u007f") + '"'


def connection(name: str, address: str, authority: Path, default: bool = True) -> str:
    """The text of a Flower home's config.toml with one connection."""
    first = f'[superlink]\ndefault = "{name}"\n\n' if default else ""
    return f"{first}[superlink.{name}]\naddress = {_toml(address)}\nroot-certificates = {_toml(str(authority))}\n"
