"""The phases a server may ask for, and what may cross in each: read from the signatures of a client side.

The client's door (client_app/app.py) holds every message to it, so `florilegium privacy` cannot leave one out.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from types import NoneType
from typing import Any, TypeVar

from florilegium.protocol import payloads
from florilegium.protocol.payloads import Nothing, Profile, Report, SiteProfile, Weights

#: phase -> Flower message type. Every method is spoken in these words.
PHASES = {
    "profile": "query.profile",  # who are you?                    -> Profile | SiteProfile
    "train": "train",  # learn from your private data
    "represent": "query.represent",  # what do you see in these samples?
    "distill": "train.distill",  # learn from these targets
    "joined": "train.joined",  # distill, train and represent in one message
    "evaluate": "evaluate",  # how good are you?               -> Report
}
#: phase -> (what comes down, what goes up) of the phases that belong to no method
ALWAYS: dict[str, tuple[tuple[type, ...], tuple[type, ...]]] = {
    "profile": ((Nothing,), (Profile, SiteProfile)),
    "evaluate": ((Nothing, Weights), (Report,)),
}
Kinds = tuple[tuple[type, ...], tuple[type, ...]]  # payload classes down, and up
F = TypeVar("F", bound=Callable[..., Any])


def crosses(kinds: Callable[[Any], Kinds]) -> Callable[[F], F]:
    """Mark a phase whose settings decide what crosses: `kinds` gives, of a side's settings, what comes down and up."""

    def mark(function: F) -> F:
        function.crossing = kinds  # type: ignore[attr-defined]
        return function

    return mark


def exchanges_of(arm: Any) -> str:
    """How the server side of an arm speaks to clients (florilegium/federation/joining.py): separate | joined."""
    return str(arm.value("server", "exchanges", "separate"))


def phases_of(Half: Any, exchanges: str = "separate") -> list[str]:
    """The phases of the wire that clients of a side answer, in the wire's order; with `exchanges` joined, `joined`
    stands for `represent`."""
    there = {phase for phase in PHASES if phase in ALWAYS or hasattr(Half, phase)}
    if exchanges == "joined":
        there = there - {"represent"} | {"joined"}
    return [phase for phase in PHASES if phase in there]


def declared(Half: Any, phase: str, settings: Any = None) -> Kinds:
    """(payloads that may come down, payloads that may go up) in `phase` of a side (its class, or one of it).

    A phase's function may have an attribute `crossing`, a function of the side's settings, where these decide what
    crosses; ((), ()) is a phase that these settings never ask for. ValueError where a signature says nothing.
    """
    if phase in ALWAYS:
        down, up = ALWAYS[phase]
        models = any(
            payloads.Weights in declared(Half, other, settings)[1] for other in phases_of(Half) if other not in ALWAYS
        )
        return tuple(kind for kind in down if kind is not payloads.Weights or models), up  # no uploads, no global model
    if phase == "joined":  # client_app/joined.py: what `represent` answers, to samples with targets beside them
        return (payloads.Joined,), declared(Half, "represent", settings)[1]
    function = getattr(Half, phase)
    if settings is not None and (crossing := getattr(function, "crossing", None)) is not None:
        found: Kinds = crossing(settings)
        return found
    hints = typing.get_type_hints(function)
    answer = hints.pop("return", None)
    question = list(hints.values())[-1] if hints else None
    kinds = tuple(
        tuple(kind for kind in (typing.get_args(hint) or (hint,)) if kind not in (None, NoneType))
        for hint in (question, answer)
    )
    unknown = [
        kind for each in kinds for kind in each if payloads.PAYLOADS.get(getattr(kind, "__name__", "")) is not kind
    ]
    if unknown or not all(kinds):
        raise ValueError(
            f"the signature of {phase!r} of {getattr(Half, '__name__', type(Half).__name__)} should name "
            f"the payloads that come down and go up, it has {hints} -> {answer}"
        )
    return kinds[0], kinds[1]
