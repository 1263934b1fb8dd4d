"""An in-process Grid: the real ServerApp and ClientApp without Ray, SuperLink or sockets.

Every message makes a serialisation round trip, so a test fails on anything that would not survive the wire.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

FIRST_NODE = 100
Tamper = Callable[[Message, Message], Message | None]  # (question, reply) -> another reply, or None: never arrives
Delay = Callable[[Message], float]  # question -> seconds until its reply can be pulled


def over_the_wire(message: Message) -> Message:
    """Serialise and deserialise a message as Flower's Runtime API does."""
    contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    arrived = inflate_object_from_contents(message.object_id, contents)
    arrived.metadata.__dict__["_message_id"] = message.metadata.message_id
    return arrived


class LocalGrid(Grid):
    """Node FIRST_NODE + i is client i. `tamper` plays the client that breaks the contract, or the lost reply; `delay`
    the slow one. Nodes may `join` and `leave`."""

    def __init__(
        self,
        client_app: ClientApp,
        clients: int,
        run_config: dict,
        tamper: Tamper | None = None,
        delay: Delay | None = None,
    ) -> None:
        self.client_app, self.tamper, self.delay = client_app, tamper, delay
        self.sent: list[tuple[int, str]] = []  # (node, message type), in the order sent
        self.under_way: dict[str, int] = {}  # message id -> node, of replies that nobody has pulled
        self.most_under_way = 0  # at one node at one time
        self._replies: dict[str, tuple[float, Message]] = {}  # message id -> (not before, reply)
        self._run = Run.create_empty(run_id=1)
        self.contexts = {
            FIRST_NODE + i: Context(
                run_id=1,
                node_id=FIRST_NODE + i,
                state=RecordDict(),
                run_config=dict(run_config),
                node_config={"partition-id": i, "num-partitions": clients},
            )
            for i in range(clients)
        }

    def leave(self, client: int) -> Context:
        """The client's node disconnects; gives what `join` needs to bring it back."""
        return self.contexts.pop(FIRST_NODE + client)

    def join(self, context: Context, node: int) -> None:
        """A client connects, under a node number that may be new."""
        context.node_id = node
        self.contexts[node] = context

    def release(self) -> None:
        """Whatever is delayed can be pulled now."""
        self._replies = {name: (0.0, reply) for name, (_, reply) in self._replies.items()}

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, *_: object, **__: object) -> Message:
        raise NotImplementedError("deprecated in Flower; our code builds Message itself")

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node) for node in self.contexts]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._deliver(message) for message in messages]

    def _deliver(self, message: Message) -> str:
        message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
        node = message.metadata.dst_node_id
        self.sent.append((node, message.metadata.message_type))
        self.under_way[message.metadata.message_id] = node
        self.most_under_way = max(self.most_under_way, list(self.under_way.values()).count(node))
        arrived = over_the_wire(message)
        try:
            reply = self.client_app(arrived, self.contexts[node])
        except Exception as error:  # what Flower's SuperNode and Ray backend do
            reason = f"{type(error)}:<'{error}'>"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=arrived)
        if self.tamper is not None:
            reply = self.tamper(arrived, reply)
        if reply is not None:
            reply.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            ready = time.monotonic() + (self.delay(message) if self.delay is not None else 0.0)
            self._replies[message.metadata.message_id] = ready, over_the_wire(reply)
        return message.metadata.message_id

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        now = time.monotonic()
        ready = [name for name in message_ids if name in self._replies and self._replies[name][0] <= now]
        for name in ready:
            del self.under_way[name]
        return [self._replies.pop(name)[1] for name in ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))


def run_apps(
    server_app: ServerApp,
    client_app: ClientApp,
    clients: int,
    run_config: dict,
    tamper: Tamper | None = None,
    delay: Delay | None = None,
) -> LocalGrid:
    """Run a whole federation in this process and return its grid."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    grid = LocalGrid(client_app, clients, run_config, tamper, delay)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(run_config))
    server_app(grid, context)
    return grid
