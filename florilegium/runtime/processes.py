"""One process of a federation in the foreground: checked before it starts, told in one line when it fails.

Containers and `florilegium deploy local` run the same three: superlink, serverapp, supernode.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from florilegium.runtime import commands, keys, superlink
from florilegium.runtime.superlink import LaunchError
from florilegium.runtime.warm import COMMAND, Warm, using

END_SECONDS = 10.0
HANDSHAKE_SECONDS = 5.0
POLLED = re.compile(r"uvicorn\.access.* 200$")  # the server app asks for replies many times a second
# what Flower logs of a failure -> what it means; the last one that was logged is told
MEANINGS = {
    "[code: 2004]": "the SuperLink does not take this node: its key is not registered (`florilegium deploy register`), "
    "or the last connection with it still counts as alive (up to a minute after a kill)",
    "[code: 2001]": "the SuperLink does not take nodes without a key",
    "CERTIFICATE_VERIFY_FAILED": "the SuperLink's certificate is not one of this federation's authority (ca.crt)",
    "ddress already in use": "the port is taken already",
}


def run(command: Callable[[], list[str]], home: Path, restart: float | None, warm: bool | Path = False) -> int:
    """Run what `command` gives until it ends, and again `restart` seconds later (None: once); the exit code.

    `command` checks and may raise; its process gets `home` as its Flower home, and with `warm` a process that has
    imported a client's libraries beforehand (warm.py), its own or the one at that path. Ctrl-C and SIGTERM end it.
    """
    home.mkdir(parents=True, exist_ok=True)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
    code, ready = 0, command()  # what is wrong from the beginning ends us
    try:
        while True:
            if ready:
                code = _once(ready, home, warm)
            if restart is None:
                return code
            time.sleep(restart)
            ready = _checked(command)
    except KeyboardInterrupt:
        return 0


def _checked(command: Callable[[], list[str]]) -> list[str]:
    """The command line, or [] when it cannot work just now, which is told."""
    try:
        return command()
    except (keys.KeyFileError, LaunchError) as error:
        print(f"florilegium: {error}", file=sys.stderr, flush=True)
        return []


def _once(command: list[str], home: Path, warm: bool | Path) -> int:
    environment = superlink.quiet_environment({"FLWR_HOME": str(home)})
    line = [superlink.program(command[0]), *command[1:]]
    if warm is True:
        with Warm(home, environment, superlink.program(COMMAND)) as given:
            return _ended(line, given)
    return _ended(line, using(warm, environment) if warm else environment)


def _ended(command: list[str], environment: dict[str, str]) -> int:
    process = subprocess.Popen(
        command,
        env=environment,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    said = _Said()
    # in a thread: its SuperExec has the same stdout and lives until it is waited for, so the output may not end first
    reader = threading.Thread(target=said.follow, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        process.wait()
    finally:
        _end(process)
        reader.join(END_SECONDS)
    if process.returncode:
        why = said.meaning or said.last_words()
        print(f"florilegium: {Path(command[0]).name} ended: {why}", file=sys.stderr, flush=True)
    return process.returncode


class _Said:
    """What a process prints, passed on; what it means, and its last lines."""

    def __init__(self) -> None:
        self.meaning = ""
        self.end: deque[str] = deque(maxlen=20)

    def last_words(self) -> str:
        return superlink.last_words("\n".join(self.end))

    def follow(self, lines: Iterable[str]) -> None:
        for line in lines:
            if POLLED.search(line):
                continue
            with contextlib.suppress(BrokenPipeError):
                print(line, end="", flush=True)
            self.meaning = next((said for sign, said in MEANINGS.items() if sign in line), self.meaning)
            self.end.append(line)


def _end(process: subprocess.Popen) -> None:
    """End the process, which ends its own children, given the time; then those it left, when it was killed itself."""
    with superlink.uninterrupted():
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + END_SECONDS
            with contextlib.suppress(ProcessLookupError):  # nobody of its session is left
                os.killpg(process.pid, number)
                while time.monotonic() < deadline:
                    os.killpg(process.pid, 0)
                    time.sleep(0.1)


# -- the three ---------------------------------------------------------------------------------------------------------


def superlink_command(place: Path, host: str, port: int, fleet: str, database: Path) -> list[str]:
    """KeyFileError, LaunchError."""
    keys.check_server(place)
    for where in {f"{host}:{port}", fleet}:
        _free(*split(where))
    database.parent.mkdir(parents=True, exist_ok=True)
    return commands.superlink(place, host, port, fleet, database, isolated=True)


def serverapp_command(place: Path, address: str) -> list[str]:
    """KeyFileError, LaunchError."""
    check_certificate(address, place / "ca.crt")
    return commands.serverapp(place, address)


def supernode_command(place: Path, address: str, config: Mapping[str, str | int]) -> list[str]:
    """KeyFileError, LaunchError."""
    keys.check_site(place)
    check_certificate(address, place / "ca.crt")
    check_fleet(address, place / "ca.crt")
    return commands.supernode(place, address, superlink.free_port(), config)


def check_certificate(address: str, authority: Path) -> None:
    """KeyFileError when who answers at `address` is not certified by `authority`, LaunchError when it speaks no TLS.

    Nobody may answer yet: a line says so, and Flower tries again for as long as it takes.
    """
    host, port = split(address)
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError):
        raise keys.KeyFileError(f"{authority} is not a certificate that can be read") from None
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        with (
            socket.create_connection((host, port), HANDSHAKE_SECONDS) as raw,
            context.wrap_socket(raw, server_hostname=host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        raise keys.KeyFileError(
            f"the certificate at {address} is refused: {error.verify_message} (checked against {authority})"
        ) from None
    except (ssl.SSLError, ConnectionResetError) as error:
        what = "ends the connection" if isinstance(error, ConnectionResetError) else "speaks no TLS"
        raise LaunchError(f"what answers at {address} {what}; is that the SuperLink's address and port?") from None
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        print(f"florilegium: nobody answers at {address} yet ({why}); trying again until somebody does", flush=True)


def check_fleet(address: str, authority: Path) -> None:
    """LaunchError when who answers at `address` has no API for SuperNodes: the control address of a SuperLink, say."""
    if not commands.fleet_is_grpc():
        return
    import grpc

    credentials = grpc.ssl_channel_credentials(authority.read_bytes())
    proxied = int(split(address)[0] not in superlink.LOOPBACK)
    with grpc.secure_channel(address, credentials, [("grpc.enable_http_proxy", proxied)]) as channel:
        try:
            channel.unary_unary("/flwr.proto.Fleet/ActivateNode")(b"", timeout=HANDSHAKE_SECONDS)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise LaunchError(
                    f"what answers at {address} takes no SuperNodes; the SuperLink's fleet address is needed, "
                    "not its control address"
                ) from None


def healthy(address: str, authority: Path) -> bool:
    """Whether a SuperLink certified by `authority` answers for its health at `address`."""
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except OSError:  # also every error of ssl
        return False
    proxied = split(address)[0] not in superlink.LOOPBACK
    return superlink.answers(f"https://{address}/health", HANDSHAKE_SECONDS, context, proxied)


def split(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`. LaunchError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise LaunchError(f"{address!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def _free(host: str, port: int) -> None:
    """LaunchError when the port cannot be listened on: a restarted SuperLink would otherwise say so pages deep."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with contextlib.closing(socket.create_server((host, port), family=family)):
            return
    except OSError as error:
        raise LaunchError(f"cannot listen on {host}:{port}: {error.strerror}") from None
