"""`florilegium deploy keys | superlink | serverapp | supernode | register | connect | health`: what machines run.

`deploy local` is not here: it is `florilegium run runtime=local`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from florilegium import assets
from florilegium.config.errors import SettingsError
from florilegium.config.node import KEYS, checked
from florilegium.runs import files
from florilegium.runtime import commands, keys, processes, superlink
from florilegium.runtime.keys import KeyFileError
from florilegium.runtime.superlink import Flower, LaunchError

ERRORS = (KeyFileError, LaunchError, SettingsError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sub-commands of `florilegium deploy`."""
    parts = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    parts.add_parser("local", help="a federation over loopback and one run on it: deploy local [--keep] [overrides]")
    _keys(parts.add_parser("keys", help="make the authority, the server's certificate and a key for each site"))
    _superlink(parts.add_parser("superlink", help="run the SuperLink"))
    _serverapp(parts.add_parser("serverapp", help="run the server apps of a SuperLink"))
    _supernode(parts.add_parser("supernode", help="run the SuperNode of a site"))
    _register(parts.add_parser("register", help="let sites in: their public keys, at a running SuperLink"))
    _connect(parts.add_parser("connect", help="name a SuperLink in this machine's Flower home, for `florilegium run`"))
    _health(parts.add_parser("health", help="exit with 0 when a SuperLink answers: for containers"))


def run(_: argparse.Namespace) -> None:
    """Nothing of its own: each sub-command names its function."""


def _keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sites", nargs="+", default=[], metavar="NAME", help="a folder and a key for each")
    parser.add_argument(
        "--names",
        nargs="+",
        default=[],
        metavar="HOST",
        help="host names and addresses by which sites and operators reach the server",
    )
    parser.add_argument("--days", type=int, default=365, help="how long the server's certificate is valid")
    parser.set_defaults(command=make_keys)


def _superlink(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keys", type=Path, required=True, help="the folder server/ of `deploy keys`")
    parser.add_argument(
        "--control",
        default=f"127.0.0.1:{commands.CONTROL_PORT}",
        metavar="HOST:PORT",
        help="where operators and the server app connect: never open to sites",
    )
    parser.add_argument(
        "--fleet", default=f"0.0.0.0:{commands.FLEET_PORT}", metavar="HOST:PORT", help="where sites connect"
    )
    parser.add_argument("--database", type=Path, required=True, help="runs, nodes and messages, in SQLite")
    _process(parser, run_superlink)


def _serverapp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keys", type=Path, required=True, help="the folder server/ of `deploy keys`")
    parser.add_argument("--superlink", required=True, metavar="HOST:PORT", help="the SuperLink's --control")
    _process(parser, run_serverapp)


def _supernode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keys", type=Path, required=True, help="the site's folder of `deploy keys`")
    parser.add_argument("--superlink", required=True, metavar="HOST:PORT", help="the SuperLink's --fleet")
    parser.add_argument("--client", type=int, required=True, help="which of clients.mix this site is, from 0")
    parser.add_argument("--clients", type=int, required=True, help="how many clients.mix has")
    parser.add_argument("--state", type=Path, required=True, help="where this site remembers its private model")
    parser.add_argument("--data", type=Path, help="this site's own data; without it, its part of the embedded data")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help=f"more of the node configuration (docs/data.md): {', '.join(KEYS[3:])}",
    )
    libraries = parser.add_mutually_exclusive_group()
    libraries.add_argument(
        "--cold",
        action="store_true",
        help="keep no process with a client's libraries imported: "
        "every message imports them anew, and the site needs 600 MB less between messages",
    )
    libraries.add_argument(
        "--warm",
        type=Path,
        metavar="FOLDER",
        help="use another site's such process, on the same machine: the folder `warm` of its --home",
    )
    _process(parser, run_supernode)


def _register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, help="the directory of `deploy keys`")
    parser.add_argument("--superlink", required=True, metavar="HOST:PORT", help="the SuperLink's --control")
    parser.add_argument("--sites", nargs="+", required=True, metavar="NAME")
    parser.set_defaults(command=register)


def _connect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="what runtime.superlink and `flwr run . NAME` call it")
    parser.add_argument("--keys", type=Path, required=True, help="a folder with ca.crt")
    parser.add_argument("--superlink", required=True, metavar="HOST:PORT", help="the SuperLink's --control")
    parser.set_defaults(command=connect)


def _health(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keys", type=Path, required=True, help="a folder with ca.crt")
    parser.add_argument("--superlink", required=True, metavar="HOST:PORT", help="the SuperLink's --control")
    parser.set_defaults(command=health)


def _process(parser: argparse.ArgumentParser, command: object) -> None:
    parser.add_argument("--home", type=Path, help="Flower's home of this process (default: a folder beside its state)")
    parser.add_argument(
        "--restart",
        type=float,
        metavar="SECONDS",
        help="start again so long after it ended (containers have a restart policy instead)",
    )
    parser.set_defaults(command=command)


# -- what they do ------------------------------------------------------------------------------------------------------


def make_keys(options: argparse.Namespace) -> None:
    made = keys.make(options.directory, options.sites, options.names, options.days)
    for path in made:
        print(path)
    if not made:
        print(f"{options.directory} has everything already", file=sys.stderr)


def run_superlink(options: argparse.Namespace) -> None:
    host, port = processes.split(options.control)
    home = options.home or options.database.resolve().parent / "flower"
    sys.exit(
        processes.run(
            lambda: processes.superlink_command(options.keys, host, port, options.fleet, options.database),
            home,
            options.restart,
        )
    )


def run_serverapp(options: argparse.Namespace) -> None:
    home = options.home or Path.cwd() / "flower"
    _offer_assets()
    sys.exit(processes.run(lambda: processes.serverapp_command(options.keys, options.superlink), home, options.restart))


def run_supernode(options: argparse.Namespace) -> None:
    """LaunchError, SettingsError."""
    if not 0 <= options.client < options.clients:
        raise LaunchError(f"--client: {options.client} is none of the {options.clients} clients, 0 is the first")
    options.state.mkdir(parents=True, exist_ok=True)
    given: dict[str, str | int] = {
        "partition-id": options.client,
        "num-partitions": options.clients,
        "state-dir": str(options.state),
    }
    if options.data:
        given["data-path"] = str(options.data)
    for text in options.set:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise LaunchError(f"--set: {text!r} is not KEY=VALUE")
        if key in given:
            raise LaunchError(f"--set: {key} is given by an option of its own")
        given[key] = value
    config = checked(given)
    _offer_assets()
    home = options.home or options.state.resolve() / "flower"
    sys.exit(
        processes.run(
            lambda: processes.supernode_command(options.keys, options.superlink, config),
            home,
            options.restart,
            warm=options.warm or not options.cold,
        )
    )


def register(options: argparse.Namespace) -> None:
    """KeyFileError, LaunchError."""
    authority = (options.directory / "authority" / "ca.crt").resolve()
    processes.check_certificate(options.superlink, authority)
    for site in options.sites:
        if not (options.directory / "sites" / site / "node.pub").exists():
            raise LaunchError(f"no key of site {site!r} in {options.directory / 'sites'}")
    with tempfile.TemporaryDirectory(prefix="florilegium-") as home:
        Path(home, "config.toml").write_text(commands.connection("here", options.superlink, authority))
        flower = Flower("here", superlink.quiet_environment({"FLWR_HOME": home}))
        for site in options.sites:
            flower.register(options.directory / "sites" / site / "node.pub", site)
            print(f"{site} is registered")


def connect(options: argparse.Namespace) -> None:
    """Add the connection to config.toml of the Flower home. KeyFileError, LaunchError."""
    authority = (options.keys / "ca.crt").resolve()
    keys.certificate(authority)
    processes.split(options.superlink)
    config = Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr"), "config.toml")
    there = config.read_text() if config.exists() else ""
    if f"[superlink.{options.name}]" in there:
        raise LaunchError(f"{config} has a connection {options.name!r} already")
    added = commands.connection(options.name, options.superlink, authority, default=not there)
    config.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(config, (f"{there}\n{added}" if there else added).encode())
    print(config)


def health(options: argparse.Namespace) -> None:
    if not processes.healthy(options.superlink, options.keys / "ca.crt"):
        sys.exit(f"florilegium: no healthy SuperLink at {options.superlink}")


def _offer_assets() -> None:
    """Flower runs the bundle, which has no assets: tell it where this installation has them, when it has."""
    try:
        os.environ.setdefault(assets.VARIABLE, str(assets.root()))
    except assets.AssetError:
        return
