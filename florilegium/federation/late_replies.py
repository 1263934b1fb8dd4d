"""Replies that come after their exchange ended: whose nodes are still busy, and what became of what they sent.

A node has at most one message in flight: it is not asked again before its late reply came, or was given up.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from florilegium.federation.exchange import Client, Exchange


@dataclass
class Question:
    """A message under way after its exchange ended."""

    exchange: Exchange
    client: Client
    given_up: bool = False


class Overdue:
    """Questions without a reply, by message id, and late replies that may still stand in for a missing one."""

    def __init__(self, give_up: float) -> None:
        self.give_up = give_up
        self.questions: dict[str, Question] = {}
        self.held: list[tuple[Question, Any]] = []  # (question, the message that answers it)

    def busy(self) -> set[int]:
        """Nodes that still work on an earlier question. Those that took too long are given up, and free again."""
        now = time.monotonic()
        for question in self.questions.values():
            question.given_up |= now - question.exchange.started > self.give_up
        return {q.client.node for q in self.questions.values() if not q.given_up}

    def forget(self, nodes: Iterable[int]) -> None:
        """These nodes are gone; nothing more comes of them."""
        gone = set(nodes)
        self.questions = {name: q for name, q in self.questions.items() if q.client.node not in gone}

    def take(self, phase: str) -> list[tuple[Question, Any]]:
        """The late replies to questions of this phase, each given out once."""
        taken = [(q, m) for q, m in self.held if q.exchange.phase == phase]
        self.held = [(q, m) for q, m in self.held if q.exchange.phase != phase]
        return taken
