"""Standalone, server side: clients learn alone. Client side: client_app/methods/standalone.py. Nothing crosses."""

from __future__ import annotations

from dataclasses import dataclass

from florilegium.federation.federation import Federation
from florilegium.protocol.payloads import Nothing, Report
from strategies.blocks.rounds import Rounds


@dataclass
class StandaloneSettings:
    """The server has no settings: it only asks the clients to train."""


class Standalone(Rounds):
    """Reference arm of Table I: each client trains on its private data alone, as long as the method's clients do."""

    Settings = StandaloneSettings

    def begin(self, federation: Federation) -> dict[str, float]:
        federation.ask("train", Nothing(), Nothing, Report)
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        federation.ask("train", Nothing(), Nothing, Report)
        return {}
