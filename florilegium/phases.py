"""What may cross in each phase of a method, read from the signatures of its client half.

The client's door (client_app/app.py) holds every message to it, so `florilegium privacy` cannot leave one out.
"""

from __future__ import annotations

import typing
from types import NoneType
from typing import Any

from florilegium import wire

Kinds = tuple[tuple[type, ...], tuple[type, ...]]  # payload classes down, and up


def exchanges_of(row: Any) -> str:
    """How the server half of a row speaks to clients (strategies/exchanges.py): separate | joined."""
    return str((row.get("server") or {}).get("exchanges", "separate"))


def phases_of(Half: Any, exchanges: str = "separate") -> list[str]:
    """The phases of the wire that clients of a half answer, in the wire's order; with `exchanges` joined, `joined`
    stands for `represent`."""
    there = {phase for phase in wire.PHASES if phase in wire.ALWAYS or hasattr(Half, phase)}
    if exchanges == "joined":
        there = there - {"represent"} | {"joined"}
    return [phase for phase in wire.PHASES if phase in there]


def declared(Half: Any, phase: str, settings: Any = None) -> Kinds:
    """(payloads that may come down, payloads that may go up) in `phase` of a half (its class, or one of it).

    A phase's function may have an attribute `crossing`, a function of the half's settings, where these decide what
    crosses; ((), ()) is a phase that these settings never ask for. ValueError where a signature says nothing.
    """
    if phase in wire.ALWAYS:
        down, up = wire.ALWAYS[phase]
        models = any(wire.Weights in declared(Half, other, settings)[1] for other in phases_of(Half)
                     if other not in wire.ALWAYS)
        return tuple(kind for kind in down if kind is not wire.Weights or models), up  # no uploads, no global model
    if phase == "joined":  # client_app/joined.py: what `represent` answers, to samples with targets beside them
        return (wire.Joined,), declared(Half, "represent", settings)[1]
    function = getattr(Half, phase)
    if settings is not None and (crossing := getattr(function, "crossing", None)) is not None:
        found: Kinds = crossing(settings)
        return found
    hints = typing.get_type_hints(function)
    answer = hints.pop("return", None)
    question = list(hints.values())[-1] if hints else None
    kinds = tuple(tuple(kind for kind in (typing.get_args(hint) or (hint,)) if kind not in (None, NoneType))
                  for hint in (question, answer))
    unknown = [kind for each in kinds for kind in each if wire.PAYLOADS.get(getattr(kind, "__name__", "")) is not kind]
    if unknown or not all(kinds):
        raise ValueError(f"the signature of {phase!r} of {getattr(Half, '__name__', type(Half).__name__)} should name "
                         f"the payloads that come down and go up, it has {hints} -> {answer}")
    return kinds[0], kinds[1]
