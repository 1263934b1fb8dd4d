"""How much a client has trained: rows of its own, and rows that all may know.

A row counts once for each step that learns from it. Two methods with equal budgets took as many gradients of rows of
each kind. A client counts the rows of one message and sends the two numbers beside its reply.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Budget:
    """Rows that training steps learned from: `private` ones, and `shared` ones (public, synthetic, replayed)."""

    private: float = 0
    shared: float = 0

    def __bool__(self) -> bool:
        return bool(self.private or self.shared)

    def __add__(self, other: Budget) -> Budget:
        return Budget(self.private + other.private, self.shared + other.shared)
