"""The in-process grid with what tests do to it: replies that are changed, lost or late, and nodes that come and go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from florilegium.runtime.inprocess import FIRST_NODE, InProcessGrid, over_the_wire, serve

__all__ = ["FIRST_NODE", "LocalGrid", "over_the_wire", "run_apps"]
Tamper = Callable[[Message, Message], Message | None]  # (question, reply) -> another reply, or None: never arrives
Delay = Callable[[Message], float]  # question -> seconds until its reply can be pulled


class LocalGrid(InProcessGrid):
    """`tamper` plays the client that breaks the contract, or the lost reply; `delay` the slow one. Nodes may `join` and
    `leave`."""

    def __init__(
        self,
        client_app: ClientApp,
        clients: int,
        run_config: dict,
        tamper: Tamper | None = None,
        delay: Delay | None = None,
    ) -> None:
        super().__init__(client_app, clients, run_config)
        self.tamper, self.delay = tamper, delay
        self.sent: list[tuple[int, str]] = []  # (node, message type), in the order sent
        self.under_way: dict[str, int] = {}  # message id -> node, of replies that nobody has pulled
        self.most_under_way = 0  # at one node at one time

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

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        names = super().push_messages(messages)
        for name, message in zip(names, messages, strict=True):
            node = message.metadata.dst_node_id
            self.sent.append((node, message.metadata.message_type))
            self.under_way[name] = node
            self.most_under_way = max(self.most_under_way, list(self.under_way.values()).count(node))
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        for reply in replies:
            del self.under_way[reply.metadata.reply_to_message_id]
        return replies

    def answer(self, message: Message) -> Message | None:
        reply = super().answer(message)
        return reply if self.tamper is None else self.tamper(message, reply)

    def available(self, message: Message, sent: float, done: float) -> float:
        late = self.delay(message) if self.delay is not None else 0.0
        return time.monotonic() + late if late else super().available(message, sent, done)


def run_apps(
    server_app: ServerApp,
    client_app: ClientApp,
    clients: int,
    run_config: dict,
    tamper: Tamper | None = None,
    delay: Delay | None = None,
) -> LocalGrid:
    """Run a whole federation in this process and return its grid."""
    grid = LocalGrid(client_app, clients, run_config, tamper, delay)
    serve(server_app, grid, run_config)
    return grid
