"""Which fields of a payload each mechanism and each defence covers, and which are refused.

One rule for client, server, preflight and listing: a field may leave under a mechanism when the mechanism covers what
the field holds (florilegium/protocol/fields.py), when nothing of it is private, or when the settings release it. Every
other field is refused by name, also those of payloads that did not exist when this was written.

Under `privacy.representations` and `privacy.training` this is about what a client sends; under `privacy.votes`, which
trusts the server, about what the server sends down; under `defence` about what a client sends and the method uses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import fields
from typing import Any

from torch import Tensor

from florilegium.config.privacy import PrivacySettings
from florilegium.privacy.mechanisms import PrivacyError
from florilegium.protocol.fields import COUNT, FIGURE, HOLDS, LABEL, MODEL, PUBLIC, VECTOR, DeclarationError, holds

REPRESENTATIONS, VOTES, TRAINING, DEFENCE = "privacy.representations", "privacy.votes", "privacy.training", "defence"
#: mechanism -> what it covers
COVERED: dict[str, frozenset[str]] = {
    REPRESENTATIONS: frozenset({VECTOR}),
    VOTES: frozenset({LABEL}),
    TRAINING: frozenset({VECTOR, LABEL, MODEL, FIGURE}),  # all that is computed from a model trained by DP-SGD
    DEFENCE: frozenset({VECTOR, LABEL}),
}
#: mechanism -> what it leaves as it is, because its promise is not about that
OPEN: dict[str, frozenset[str]] = {
    REPRESENTATIONS: frozenset({PUBLIC, COUNT}),
    VOTES: frozenset({PUBLIC, COUNT, FIGURE}),
    TRAINING: frozenset({PUBLIC, COUNT}),
    DEFENCE: frozenset({PUBLIC, COUNT, FIGURE}),
}
#: kinds that `privacy.<mechanism>.release` may name -> what a field of this kind holds
RELEASES = {"labels": LABEL, "figures": FIGURE, "vectors": VECTOR}
ADVICE = {
    REPRESENTATIONS: "privacy.training covers weights and labels",
    VOTES: "privacy.representations covers vectors",
    TRAINING: "it covers what is computed from a model that DP-SGD trained",
    DEFENCE: "method=flower has robust averages of weights",
}


def uncovered(payload: Any, mechanisms: Collection[str], released: Collection[str] = ()) -> list[str]:
    """The fields of a payload (a class, or one of it) that none of `mechanisms` covers or leaves open, by name.

    `released` are kinds of HOLDS that may leave all the same. Of an instance, empty fields do not count.
    PrivacyError for a field that does not say what it holds.
    """
    may = frozenset(released).union(*(COVERED[name] | OPEN[name] for name in mechanisms))
    try:
        return [
            f.name
            for f in fields(payload)
            if holds(payload, f) not in may and (isinstance(payload, type) or filled(getattr(payload, f.name)))
        ]
    except DeclarationError as error:
        raise PrivacyError(str(error)) from error


def filled(value: Any) -> bool:
    """Whether there is anything in the value of a field."""
    return bool(value.numel()) if isinstance(value, Tensor) else value not in ("", (), [], {})


def refusal(payload: Any, mechanism: str, names: Iterable[str], release: str = "") -> str:
    """One line: which fields of the payload the mechanism does not cover, what they hold, and what to do."""
    kind = payload if isinstance(payload, type) else type(payload)
    held = {f.name: holds(payload, f) for f in fields(kind)}
    listed = list(names)
    where = ", ".join(f"{kind.__name__}.{name}" for name in listed)
    what = "; ".join(HOLDS[one] for one in dict.fromkeys(held[name] for name in listed))
    how = next((word for word, one in RELEASES.items() if one == held[listed[0]]), None)
    opening = f", or let it leave by {release}=[...,{how}]" if release and how else ""
    return f"{mechanism} does not cover {where} ({what}); {ADVICE[mechanism]}{opening}"


# -- what clients send -------------------------------------------------------------------------------------------------


def at_client(settings: PrivacySettings) -> list[str]:
    """The mechanisms that protect what a client sends."""
    return [REPRESENTATIONS] * bool(settings.representations) + [TRAINING] * bool(settings.training)


def refused_upload(payload: Any, settings: PrivacySettings) -> str | None:
    """Why a client may not send a payload (a class, or one of it) under these settings; None when it may.

    Labels and figures beside noisy vectors leave only where `privacy.representations.release` names them; figures are
    withheld otherwise, so they are no reason here.
    """
    active = at_client(settings)
    if not active:
        return None
    released = {FIGURE}
    if settings.representations:
        released |= {RELEASES[word] for word in settings.representations.release}
    names = uncovered(payload, active, released)
    return refusal(payload, active[0], names, _release(active)) if names else None


def _release(active: list[str]) -> str:
    return "privacy.representations.release" if active == [REPRESENTATIONS] else ""


def withheld(settings: PrivacySettings) -> frozenset[str]:
    """What of an allowed payload stays at the client: figures that no mechanism covers and no setting releases."""
    given = settings.representations
    open_ = settings.training is not None or given is None or "figures" in given.release
    return frozenset() if open_ else frozenset({FIGURE})


def released(settings: PrivacySettings) -> list[str]:
    """The kinds that leave a client without noise because `privacy.representations.release` says so."""
    given = settings.representations
    return [] if given is None or settings.training is not None else sorted(given.release)


# -- what the server sends, and what it makes of replies ---------------------------------------------------------------


def refused_download(payload: Any, settings: PrivacySettings, left_empty: Collection[str] = frozenset()) -> str | None:
    """Why the server may not send a payload (a class, or one of it) under `privacy.votes`; None when it may.

    `left_empty` are fields, as "Targets.representations", that the method fills with nothing.
    """
    if settings.votes is None:
        return None
    kind = payload if isinstance(payload, type) else type(payload)
    names = uncovered(payload, [VOTES, *at_client(settings)], [RELEASES[word] for word in settings.votes.release])
    names = [name for name in names if f"{kind.__name__}.{name}" not in left_empty or kind is not payload]
    return refusal(payload, VOTES, names, "privacy.votes.release") if names else None


def undefended(payload: Any) -> str | None:
    """Why a payload of clients may not be used under a defence; None when it may."""
    names = uncovered(payload, [DEFENCE])
    return refusal(payload, DEFENCE, names) if names else None
