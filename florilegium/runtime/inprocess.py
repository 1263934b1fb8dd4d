"""A whole federation in this process: `runtime=inprocess`, `florilegium.run` and the tests run on it.

The ServerApp and the ClientApp are the real ones. Flower's SuperLink, its SuperNodes and Ray are not there: a run
starts as soon as its libraries are imported, and a breakpoint works on both sides, because everything happens in one
thread. Each message is turned into bytes and back, as Flower does it. What would not survive the wire fails here too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import tomllib
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from florilegium.config import composition
from florilegium.runs import lock
from florilegium.runtime.superlink import ANSI

FIRST_NODE = 100  # node FIRST_NODE + i is client i
TURN_SECONDS = 0.5  # one look at the grid lets clients work for about this long; then the server's progress is shown
RAISE = "raise-errors"  # of a client's node_config: its app lets exceptions pass instead of answering with an error
PACKAGE = Path(__file__).resolve().parents[1]  # florilegium/
PROJECT = next(
    (file for file in (PACKAGE.parent / "pyproject.toml", PACKAGE / "pyproject.toml") if file.exists()),
    PACKAGE / "pyproject.toml",
)


def over_the_wire(message: Message) -> Message:
    """Serialise and deserialise a message as Flower's Runtime API does."""
    contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    arrived = inflate_object_from_contents(message.object_id, contents)
    if not isinstance(arrived, Message):
        raise TypeError(f"a message arrived as {type(arrived).__name__}")
    arrived.metadata.__dict__["_message_id"] = message.metadata.message_id
    return arrived


class InProcessGrid(Grid):
    """Flower's Grid for clients of this process. Node FIRST_NODE + i is client i of `clients`.

    Messages wait in a queue; the clients work one after another while the server waits for replies. A reply that took
    longer than `timeout` seconds comes one look later, so that a deadline of that length misses it, as it would miss
    it on a real grid. A ClientApp that raises gives an error reply; with `debug` the exception goes through instead.
    """

    def __init__(
        self,
        client_app: ClientApp,
        clients: int,
        run_config: dict[str, Any],
        timeout: float = float("inf"),
        debug: bool = False,
    ) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # Flower's Message asks for them
        self.client_app, self.timeout, self.debug = client_app, timeout, debug
        self._queue: deque[tuple[float, Message]] = deque()  # (when it was sent, message)
        self._replies: dict[str, tuple[float, Message]] = {}  # message id -> (not before, reply)
        self._run = Run.create_empty(run_id=1)
        self.contexts = {
            FIRST_NODE + i: Context(
                run_id=1,
                node_id=FIRST_NODE + i,
                state=RecordDict(),
                run_config=dict(run_config),
                node_config={"partition-id": i, "num-partitions": clients, **({RAISE: True} if debug else {})},
            )
            for i in range(clients)
        }

    # -- Flower's interface ------------------------------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, *_: object, **__: object) -> Message:
        raise NotImplementedError("deprecated in Flower; build a Message instead")

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node) for node in self.contexts]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue the messages; their ids."""
        names = []
        for message in messages:
            names.append(uuid.uuid4().hex)
            message.metadata.__dict__["_message_id"] = names[-1]
            self._queue.append((time.monotonic(), message))
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Let clients work for a turn; the replies to `message_ids` that are there. It does not wait for the others."""
        now = time.monotonic()
        while self._queue and time.monotonic() - now < TURN_SECONDS:
            self._deliver(*self._queue.popleft())
        ready = [name for name in message_ids if name in self._replies and self._replies[name][0] <= now]
        return [self._replies.pop(name)[1] for name in ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send, and wait for all replies, or for `timeout` seconds."""
        waiting, replies, started = set(self.push_messages(messages)), [], time.monotonic()
        while waiting and (self._queue or waiting & self._replies.keys()):
            came = self.pull_messages(list(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in came}
            replies += came
            if timeout is not None and time.monotonic() - started > timeout:
                break
        return replies

    # -- one message -------------------------------------------------------------------------------------------------

    def _deliver(self, sent: float, message: Message) -> None:
        arrived = over_the_wire(message)
        reply = self.answer(arrived)
        if reply is None:
            return
        reply.metadata.__dict__["_message_id"] = uuid.uuid4().hex
        name = message.metadata.message_id
        self._replies[name] = self.available(message, sent, time.monotonic()), over_the_wire(reply)

    def available(self, message: Message, sent: float, done: float) -> float:
        """When the reply to `message` can be pulled, on the clock of time.monotonic: at once if it was in time."""
        return done if done - sent > self.timeout else sent

    def answer(self, message: Message) -> Message | None:
        """The reply of the client that `message` is for; None: it never comes."""
        context = self.contexts.get(message.metadata.dst_node_id)
        if context is None:
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, "the node is not connected"), reply_to=message)
        threads = torch.get_num_threads()  # a client sets its own, which in its own process leaves the server's alone
        try:
            return self.client_app(message, context)
        except Exception as error:  # what Flower's SuperNode and Ray backend do
            if self.debug:
                raise
            reason = f"{type(error)}:<'{error}'>"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        finally:
            torch.set_num_threads(threads)


# -- one run ---------------------------------------------------------------------------------------------------------


def serve(server_app: ServerApp, grid: Grid, run_config: dict[str, Any]) -> None:
    """Run a ServerApp on `grid` to its end."""
    server_app(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(run_config)))


def load_app(side: str) -> Any:
    """The `serverapp` or `clientapp` that pyproject.toml names for Flower."""
    module, _, name = tomllib.loads(PROJECT.read_text())["tool"]["flwr"]["app"]["components"][side].partition(":")
    return getattr(import_module(module), name)


def federate(conf: Any) -> None:
    """Run the complete, checked settings `conf` to their end. What the server raises is raised here."""
    run_config = {"settings": json.dumps(composition.plain(conf)), "overrides": ""}
    with logged(Path(conf.out)):
        try:
            server_app, client_app = load_app("serverapp"), load_app("clientapp")
            grid = InProcessGrid(
                client_app, len(conf.clients.mix), run_config, conf.timeouts.exchange, debug=debugging()
            )
            serve(server_app, grid, run_config)
        finally:
            lock.release(Path(conf.out, ".lock"))


def debugging() -> bool:
    """Whether exceptions of clients end the run: FLORILEGIUM_DEBUG is set."""
    return bool(os.environ.get("FLORILEGIUM_DEBUG"))


@contextlib.contextmanager
def logged(out: Path) -> Iterator[None]:
    """Inside the block, Flower's log, warnings and the standard error go to run.log, as those of Flower's processes do.

    While a bug is searched for, the standard error stays where it is.
    """
    file = logging.FileHandler(out / "run.log", encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("%(levelname)-7s: %(message)s"))
    file.addFilter(_uncoloured)
    loggers = [logging.getLogger(name) for name in ("flwr", "py.warnings")]
    before = [(logger, logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    logging.captureWarnings(True)
    for logger in loggers:
        logger.handlers, logger.propagate = [file], False
    try:
        with contextlib.ExitStack() as stack:
            if not debugging():
                stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(out / "run.log", "a"))))
            yield
    finally:
        logging.captureWarnings(False)
        for logger, handlers, propagate, level in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        file.close()


def _uncoloured(record: logging.LogRecord) -> bool:
    if isinstance(record.msg, str):
        record.msg = ANSI.sub("", record.msg)
    return True
