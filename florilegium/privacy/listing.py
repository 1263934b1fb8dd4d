"""`florilegium privacy METHOD`: what crosses the wire between a site and the server, field by field.

Nothing here is written down by hand: the phases and payloads are those the client side's signatures declare
(florilegium/protocol/phases.py), the fields those of the wire contract, the sizes those of the settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from florilegium import catalogue, seeds
from florilegium.config.privacy import PrivacySettings
from florilegium.config.settings import Settings
from florilegium.data.datasets import open_dataset
from florilegium.models import build
from florilegium.privacy import coverage
from florilegium.protocol import codec, payloads, phases
from florilegium.protocol.budget import Budget
from florilegium.protocol.fields import AXES, COUNT, FIGURE, HOLDS, LABEL, PUBLIC, RAW, holding, holds
from florilegium.protocol.forms import Form
from florilegium.protocol.personal import personal_names

AT_MOST = frozenset("NLARITG")  # axes that may also be shorter: fewer samples or classes, a side that is not sent
MAKES_NOTHING = ("Nothing", "PublicSet")  # payloads in which no client could see another


@dataclass(frozen=True)
class Field:
    """One field of one payload in one phase; `size` is in bytes (None: open), `axes` say what it counts."""

    phase: str
    way: str
    payload: str
    name: str
    kind: str
    holds: str
    axes: str
    size: int | None
    sees: str
    carries: str


@dataclass(frozen=True)
class Listing:
    """All fields of a method, and what no table says."""

    method: str
    exchanges: str
    fields: list[Field]
    notes: list[str]


def listing(conf: Settings) -> Listing:
    """What crosses when `conf.method` runs. SettingsError for settings that the method refuses."""
    name = str(conf.method.name)
    Half: Any = catalogue.side(name, "client")
    if Half is None:
        nothing = "This method asks nothing of clients: nothing is sent."
        return Listing(name, catalogue.entry(name).exchanges, [], [nothing])
    given = conf.method.client
    spoken = phases.phases_of(Half, phases.exchanges_of(conf.method))
    kinds = {phase: phases.declared(Half, phase, given) for phase in spoken}
    private = conf.privacy
    sizes = Sizes(conf, given, Half)
    found = [
        line
        for phase, both in kinds.items()
        for way, those in zip(("down", "up"), both, strict=True)
        for payload in those
        for line in _fields(phase, way, payload, sizes)
    ]
    found += [
        Field("every", "both", "Header", f.name, str(f.type), PUBLIC, "", None, _sees("up"), "which message this is")
        for f in fields(codec.Header)
    ]
    found += [
        Field("every", "up", "privacy", spent, "float", PUBLIC, "", None, _sees("up"), "the privacy a client has spent")
        for spent in private.reported
    ]
    found += [
        Field(
            "every", "up", "budget", f.name, "float", COUNT, "", None, _sees("up"), "how many rows a client trained on"
        )
        for f in fields(Budget)
    ]
    notes = [*_notes(kinds, sizes), *_without_noise(kinds, private)]
    return Listing(name, catalogue.entry(name).exchanges, found, notes)


def _sees(way: str) -> str:
    return "the server, by client" if way == "up" else "every client it is sent to"


def _fields(phase: str, way: str, payload: Any, sizes: Sizes) -> Iterator[Field]:
    """The fields of a payload; one without any is listed as itself."""
    there = fields(payload)
    if not there:
        yield Field(phase, way, payload.__name__, "-", "", "", "", 0, _sees(way), payload.carries)
    for f in there:
        kind, axes, size = sizes.of(payload, f)
        held = holds(payload, f)
        yield Field(phase, way, payload.__name__, f.name, kind, held, axes, size, _sees(way), payload.carries)


def _without_noise(kinds: dict[str, Any], private: PrivacySettings) -> Iterator[str]:
    """With client-side privacy on: what leaves without noise all the same, and what is refused."""
    if not coverage.at_client(private):
        return
    sent = sorted({kind for _, those in kinds.values() for kind in those}, key=lambda kind: kind.__name__)
    released = {coverage.RELEASES[word] for word in coverage.released(private)}
    covered = frozenset().union(*(coverage.COVERED[name] for name in coverage.at_client(private)))
    open_ = {COUNT, *(released & {LABEL, FIGURE})} - covered
    names = [f"{kind.__name__}.{f.name}" for kind in sent for f in holding(kind, *open_)]
    yield f"WITHOUT NOISE leave the site: {', '.join(names) or 'nothing'}. No epsilon in the records counts them."
    for refused in filter(None, (coverage.refused_upload(kind, private) for kind in sent)):
        yield f"REFUSED, nothing is sent: {refused}."


def _notes(kinds: dict[str, Any], sizes: Sizes) -> Iterator[str]:
    up = [(phase, kind) for phase, (_, those) in kinds.items() for kind in those]
    down = sorted({kind.__name__ for phase, (those, _) in kinds.items() if phase != "evaluate" for kind in those})
    made = [kind for kind in down if kind not in MAKES_NOTHING]
    raw = [f"{kind.__name__} in `{phase}`" for phase, kind in up if holding(kind, RAW)]
    yield (
        f"RAW PRIVATE DATA leave the site: {', '.join(raw)}." if raw else "No payload carries a row of private data."
    )
    yield (
        "The server sees every client's replies one by one, under the client's id. Other clients see of them what"
        f" the server makes and sends down: {', '.join(made) or 'nothing'}."
    )
    summed = sorted({phase for phase, kind in up if getattr(kind, "summed", False)})
    single = sorted(
        {
            f"{kind.__name__} in `{phase}`"
            for phase, kind in up
            if phase not in phases.ALWAYS
            and not getattr(kind, "summed", False)
            and kind not in (payloads.Nothing, payloads.Report)
        }
    )
    if summed:
        yield (
            f"Secure aggregation (SecAgg+) would fit `{', '.join(summed)}`: averaging needs only the sum of Weights,"
            " each times its examples (not rules that look at single replies, such as Krum). Flower has SecAgg+ for"
            " its legacy API alone, so today nothing is hidden from the server."
        )
    if single:
        yield f"Secure aggregation would not fit {', '.join(single)}: the server needs each client's own."
    if kept := sizes.kept():
        told = "; ".join(f"{which} {size:,} B" for which, size in kept.items())
        yield f"Personal tensors of the model never leave the client: {told}. An upload that has one is refused."
    yield (
        "A phase that fails sends one line of text instead. Of own data that are refused it names the kind of fault,"
        " never a file, row or text (florilegium/data/own/examination.py)."
    )
    yield "What a field holds: " + "; ".join(f"{kind} - {words}" for kind, words in HOLDS.items()) + "."
    yield (
        f"Sizes are one client's for one exchange: {sizes.in_words()}; of a state dict the model's, whatever a method"
        " sends beside it comes on top. Axes: " + "; ".join(f"{axis} {words}" for axis, words in AXES.items()) + "."
    )


# -- sizes -------------------------------------------------------------------------------------------------------------


class Sizes:
    """Lengths of axes and sizes of models, as far as the settings fix them."""

    def __init__(self, conf: Settings, given: Any, Half: Any) -> None:
        self.conf, self.given, self.Half = conf, given, Half
        self.form = Form.of(conf)

    @cached_property
    def lengths(self) -> dict[str, int]:
        server, width = self.conf.method.server, self.conf.clients.width
        sent = width * (2 if getattr(self.given, "second_layer", 0) else 1)  # a body's outputs travel beside z
        classes = len(open_dataset(self.conf.data).classes)
        known = {"C": classes, "G": classes, "D": sent, "A": width, "R": width}
        samples = (
            getattr(server, "samples", None)
            or getattr(getattr(server, "public", None), "samples", None)
            or self.conf.data.public.pairs
        )
        return known | {"I": sent, "T": sent} | ({"N": int(samples), "L": int(samples)} if samples else {})

    def in_words(self) -> str:
        return ", ".join(f"{axis} = {length}" for axis, length in self.lengths.items())

    def of(self, payload: Any, f: Any) -> tuple[str, str, int | None]:
        """(kind, axes, bytes) of a field."""
        if "array" in f.metadata:
            along = f.metadata["axes"]
            there = [self.lengths.get(axis) for axis in along]
            size = None if None in there else self.form.array_bytes(f, [length or 0 for length in there])
            return self.form.in_words(f, there[-1]), " x ".join(along), size
        if "blobs" in f.metadata:
            own = holds(payload, f) == RAW  # a client's own rows travel without a loss
            images = "encoded images" + ("" if own else self.form.image_words())
            return ("UTF-8 texts" if f.name == "texts" else images), f.metadata["blobs"], None
        if f.name == "tensors":
            states = self.states(payload)
            each = "; ".join(f"{which} {size:,} B" for which, size in states.items())
            return "state dict", each, max(states.values(), default=None)
        return str(f.type), "", None

    def states(self, payload: Any) -> dict[str, int]:
        """Bytes of a state dict by architecture; of what is not a model's, none."""
        name = payload.__name__
        if name == "Guide":
            return {}
        own = {(str(m.modality), str(m.model)): None for m in self.conf.clients.mix}
        chosen = [("pair", self.given.architecture)] if name == "Modules" else list(own)
        return {" ".join(which): self._state(*which) for which in chosen}

    def _state(self, modality: str, architecture: str) -> int:
        """Bytes of a model, without the tensors that never leave the client."""
        return self._bytes(modality, architecture)[0]

    def kept(self) -> dict[str, int]:
        """Bytes of the tensors that never leave the client, by architecture; empty where there are none."""
        if not hasattr(self.Half, "personal"):
            return {}
        own = dict.fromkeys((str(m.modality), str(m.model)) for m in self.conf.clients.mix)
        return {" ".join(which): self._bytes(*which)[1] for which in own}

    def _bytes(self, modality: str, architecture: str) -> tuple[int, int]:
        """(bytes that may cross, bytes that stay) of a model's state dict."""
        reads = None if modality == "image" else build.vocabulary(self.conf.clients, architecture.split("+")[-1])
        with seeds.scoped(0, "privacy"):
            model = build.build(self.conf.clients, modality, architecture, self.lengths["C"], reads)
        keeps = personal_names(self.Half(self.given), model)
        both = [0, 0]
        for name, value in model.state_dict().items():
            both[name in keeps] += value.numel() * value.element_size()
        return both[0], both[1]
