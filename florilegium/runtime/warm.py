"""A process at a site that has imported a client's libraries once; the process of every message is a fork of it.

Flower starts `flwr-clientapp` anew for each message, and importing torch and transformers takes longer than much of the
work. `Warm` puts a `flwr-clientapp` of ours first in a SuperNode's PATH. It hands its arguments, environment and open
files to the warm process, which forks; the fork gets its signals, ends with it, and its exit code is passed on.
Only libraries are imported here, nothing of the app, which comes with each run's bundle. For the same reason this file
runs as a script, not as a module of the package.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

COMMAND = "flwr-clientapp"
ENTRY = "flwr.supernode.cli:flwr_clientapp"
# what a client imports sooner or later; a name after a colon is fetched, which loads what transformers loads lazily
LIBRARIES = (
    "torch",
    "numpy",
    "omegaconf",
    "hydra",
    "safetensors.torch",
    "PIL.Image",
    "transformers:ResNetModel",
    "transformers:ViTModel",
    "transformers:BeitModel",
    "transformers:BertModel",
    "transformers:DistilBertModel",
    "transformers:RobertaModel",
    "torchmetrics.functional.classification",
)
REQUEST_SECONDS = 5.0
END_SECONDS = 10.0


class Warm:
    """`with Warm(home, environment, real) as environment:` a warm process, and the environment with which a SuperNode
    uses it.

    `real` is the path of Flower's own command, which runs where the warm process cannot be reached. Without Linux's
    process descriptors there is no warm process, and the environment stays as it is.
    """

    def __init__(
        self,
        home: Path,
        environment: Mapping[str, str],
        real: str,
        entry: str = ENTRY,
        libraries: Sequence[str] = LIBRARIES,
    ) -> None:
        self.place, self.environment, self.real = home / "warm", dict(environment), real
        self.entry, self.libraries = entry, libraries
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> dict[str, str]:
        if not hasattr(os, "pidfd_open"):
            return self.environment
        self.place.mkdir(parents=True, exist_ok=True)
        self.place.chmod(0o700)  # whoever reaches the socket runs code as us
        at = self.place / "socket"
        at.unlink(missing_ok=True)
        shim, here = self.place / COMMAND, Path(__file__).resolve()
        words = shlex.join([sys.executable, "-IS", str(here), "ask", str(at), self.real])
        shim.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        shim.chmod(0o700)
        # asking whether there is a GPU must not start CUDA here: a fork could not use it any more
        environment = {**self.environment, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        with socket.socket(socket.AF_UNIX) as listener:
            with near(str(at)) as path:
                listener.bind(path)
            listener.listen(64)  # who asks before the libraries are there waits
            command = [sys.executable, "-P", str(here), "serve", str(listener.fileno()), self.entry, *self.libraries]
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, start_new_session=True, pass_fds=[listener.fileno()]
            )
        return using(self.place, self.environment)

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()  # it ends with our end of the pipe: also when we are killed
            try:
                self.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def using(place: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """An environment with the command of the warm process at `place` (its home's folder `warm`) first in the PATH."""
    return {**environment, "PATH": os.pathsep.join([str(place), environment["PATH"]])}


# -- the command -------------------------------------------------------------------------------------------------------


def ask(at: str, real: str, arguments: list[str]) -> int:
    """Have the warm process at this socket do what `real` would; the exit code. Where nobody is, become `real`."""
    asker = socket.socket(socket.AF_UNIX)
    try:
        with near(at) as path:
            asker.connect(path)
    except OSError:
        os.execv(real, [real, *arguments])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: asker.send(bytes([number])))
    request = {"arguments": [real, *arguments], "environment": dict(os.environ), "directory": os.getcwd()}
    socket.send_fds(asker, [b"0"], [0, 1, 2])
    asker.sendall(json.dumps(request).encode() + b"\n")
    answer = asker.recv(16)  # at its end
    return int(answer) if answer else 1


@contextlib.contextmanager
def near(at: str) -> Iterator[str]:
    """A path of the same socket for this process that is short enough for one (107 bytes)."""
    directory = os.open(os.path.dirname(at), os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{os.path.basename(at)}"
    finally:
        os.close(directory)


# -- the warm process --------------------------------------------------------------------------------------------------


class Forked(Exception):
    """We are the fork, and have become what was asked for."""


class Fork:
    """A process that does what `asker` wants, for as long as it wants."""

    def __init__(self, pid: int, asker: socket.socket) -> None:
        self.pid, self.asker, self.descriptor = pid, asker, os.pidfd_open(pid)  # readable when the process has ended

    def close(self) -> None:
        os.close(self.descriptor)
        self.asker.close()

    def tell(self) -> None:
        """The exit code, as a shell has it."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        with contextlib.suppress(OSError):  # it does not wait any more
            self.asker.send(str(code if code >= 0 else 128 - code).encode())


class Server:
    """Forks for whoever asks at `listener`, until stdin ends."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener, self.watch, self.going = listener, selectors.DefaultSelector(), True
        self.forks: list[Fork] = []
        self.watch.register(sys.stdin.fileno(), selectors.EVENT_READ, self.end)
        self.watch.register(listener, selectors.EVENT_READ, self.fork)

    def serve(self) -> None:
        """Forked, in a fork."""
        while self.going:
            key, _ = self.watch.select()[0]  # one at a time: what is done for one may close another
            key.data()

    def end(self) -> None:
        self.going = False
        for fork in self.forks:
            os.kill(fork.pid, signal.SIGKILL)

    def close(self) -> None:
        """Leave no descriptor of ours to a fork."""
        for fork in self.forks:
            fork.close()
        self.watch.close()
        self.listener.close()

    def fork(self) -> None:
        asker = self.listener.accept()[0]
        asker.settimeout(REQUEST_SECONDS)
        try:
            request, files = received(asker)
        except (OSError, ValueError):  # it was killed while it asked
            return asker.close()
        pid = os.fork()
        if pid == 0:
            asker.close()
            self.close()
            become(request, files)
            raise Forked
        for each in files:
            os.close(each)
        fork = Fork(pid, asker)
        self.forks.append(fork)
        self.watch.register(fork.descriptor, selectors.EVENT_READ, lambda: self.ended(fork))
        self.watch.register(asker, selectors.EVENT_READ, lambda: self.signalled(fork))

    def signalled(self, fork: Fork) -> None:
        try:
            number = fork.asker.recv(1)
        except OSError:
            number = b""
        os.kill(fork.pid, number[0] if number else signal.SIGKILL)  # its asker was killed: so is it
        if not number:
            self.ended(fork)

    def ended(self, fork: Fork) -> None:
        fork.tell()
        self.forks.remove(fork)
        self.watch.unregister(fork.descriptor)
        self.watch.unregister(fork.asker)
        fork.close()


def load(library: str) -> None:
    """Import `module` or `module:name`; one that is not there is left to whoever wants it."""
    module, _, name = library.partition(":")
    try:
        found = importlib.import_module(module)
        if name:
            getattr(found, name)
    except Exception as error:
        print(f"florilegium: {library} is not imported beforehand: {error}", file=sys.stderr, flush=True)


def received(asker: socket.socket) -> tuple[dict, list[int]]:
    """The request and the asker's stdin, stdout and stderr. OSError, ValueError."""
    _, files, _, _ = socket.recv_fds(asker, 1, 3)
    try:
        with asker.makefile("rb") as lines:
            request = json.loads(lines.readline())
    except (OSError, ValueError):
        for each in files:
            os.close(each)
        raise
    return request, list(files)


def become(request: dict, files: list[int]) -> None:
    """What a new process would have: its arguments, environment, directory and open files, and its own randomness."""
    for number, each in enumerate(files):
        os.dup2(each, number)
        os.close(each)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    sys.argv = request["arguments"]
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def main(arguments: list[str]) -> int:
    """`ask SOCKET REAL ...` or `serve DESCRIPTOR ENTRY LIBRARY...`; the exit code."""
    if arguments[0] == "ask":
        return ask(arguments[1], arguments[2], arguments[3:])
    module, _, name = arguments[2].partition(":")
    for library in (module, *arguments[3:]):
        load(library)
    gc.freeze()  # a collection in a fork need not copy the pages of all that is here already
    server = Server(socket.socket(fileno=int(arguments[1])))
    try:
        server.serve()
        os._exit(0)
    except Forked:
        end(getattr(importlib.import_module(module), name))


def end(entry: Callable[[], object]) -> NoReturn:
    """Run the fork's program and end as multiprocessing's forks do: taking down all modules would take a second."""
    code = 1
    try:
        entry()
        code = 0
    except SystemExit as asked:
        code = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
        if code and not isinstance(asked.code, int):
            print(asked.code, file=sys.stderr)
    except BaseException:  # the interpreter's last resort is not reached
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
