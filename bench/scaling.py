"""docs/scaling.md: bytes, operations and memory of a round for each form of exchange, from 10^3 to 10^6 clients.

    python bench/scaling.py                      # writes the page

The bytes are computed from the fields that the payloads declare, at the lengths of their axes. tests/test_scaling.py
holds these formulas to the bytes that small runs measured.
Axes: N samples, D width, C classes, G classes of a client, P weights of a model, A values of small modules, K clients.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from florilegium.protocol.payloads import (
    Adapters,
    Answers,
    Features,
    Logits,
    Prototypes,
    PublicSet,
    Samples,
    Targets,
    Weights,
)

ROOT = Path(__file__).resolve().parents[1]
PAGE, MEASURED = ROOT / "docs" / "scaling.md", ROOT / "bench" / "results" / "scale.json"
HEADER = 160  # bytes of a message's header, scalars and names, about
ARRAY = 128  # bytes before the numbers of each array (NumPy's own header)
LENGTHS = 8  # bytes of the length of an image or a text
MB, GIB = 2**20, 2**30
REGISTERED = (10**3, 10**4, 10**5, 10**6)
SHARE = 0.02  # of the clients, in a cohort
MEMORY, NETWORK, RATE, ROUND = 16 * GIB, 125e6, 1e11, 600.0  # bytes, bytes a second, operations a second, seconds


def payload_bytes(cls: type, lengths: Mapping[str, float], tensors: float = 0, arrays: int = 0) -> float:
    """Bytes of a payload whose axes have these lengths.

    `lengths` also has the mean bytes of an image and of a text under the names of the fields (`images`, `texts`); a
    field of either that is not in it is empty. A state dict has `tensors` float32 numbers in `arrays` arrays.
    """
    total = HEADER + 4.0 * tensors + ARRAY * arrays
    for f in fields(cls):
        if "array" in f.metadata:
            numbers = math.prod(lengths[axis] for axis in f.metadata["axes"])
            total += ARRAY + numbers * np.dtype(f.metadata["array"]).itemsize
        elif "blobs" in f.metadata and f.name in lengths:
            total += 2 * ARRAY + lengths[f.metadata["blobs"]] * (lengths[f.name] + LENGTHS)
    return total


@dataclass(frozen=True)
class Sizes:
    """The lengths of a federation: what its messages and its server's arithmetic depend on."""

    name: str
    samples: int
    width: int
    classes: int
    present: int  # classes of which a client has rows
    weights: int
    modules: int  # values of the low-rank factors of a model
    image: int  # bytes of an encoded image
    text: int
    kept: float = 1.0  # share of the samples that pass the vote

    def axes(self, **more: float) -> dict[str, float]:
        """The lengths of all axes that payloads of these forms have."""
        own = {"N": self.samples, "D": self.width, "A": 0, "R": self.width, "C": self.classes, "G": self.present}
        return own | {"I": self.width, "T": 0} | more


EMBEDDED = Sizes("the embedded data and models", 240, 128, 12, 12, 90_000, 9_000, 1_400, 30)
PAPER = Sizes("the sizes of FedMMKT's paper", 800, 768, 102, 30, 11_700_000, 600_000, 64 * 64 * 3, 240)


@dataclass(frozen=True)
class Exchange:
    """A form of exchange: its messages of a round, and what the server computes and holds for a cohort of K.

    `down` and `up` give bytes of a client in a round; `operations` and `memory` take the sizes and K.
    `first` says in words what lifts the first limit.
    """

    title: str
    methods: str
    down: Callable[[Sizes], float]
    up: Callable[[Sizes], float]
    operations: Callable[[Sizes, float], float]
    memory: Callable[[Sizes, float], float]
    first: str


def samples_down(s: Sizes) -> float:
    """Samples of one modality: half of the clients read images, half texts."""
    kinds = ({"images": s.image}, {"texts": s.text})
    return sum(payload_bytes(Samples, s.axes(**kind)) for kind in kinds) / 2


EXCHANGES = {
    "weights": Exchange(
        "weights",
        "FedAvg, FedProx, MOON, FedDifRC, SemanticFL",
        lambda s: payload_bytes(Weights, {}, s.weights),
        lambda s: payload_bytes(Weights, {}, s.weights),
        lambda s, K: 2.0 * K * s.weights,
        lambda s, K: 4.0 * (K + 2) * s.weights,
        "a sum that takes each reply as it comes holds two models, not K; then regional servers that send one sum",
    ),
    "modules": Exchange(
        "small modules",
        "LoraFL, BiasFL, FedDAT",
        lambda s: payload_bytes(Adapters, {}, s.modules),
        lambda s: payload_bytes(Adapters, {}, s.modules),
        lambda s, K: 2.0 * K * s.modules,
        lambda s, K: 4.0 * (K + 2) * s.modules,
        "as for weights, some twenty times later",
    ),
    "means": Exchange(
        "class means",
        "FedProto, FedKTL",
        lambda s: payload_bytes(Prototypes, s.axes(G=s.classes)),
        lambda s: payload_bytes(Prototypes, s.axes()),
        lambda s, K: 2.0 * K * s.present * s.width,
        lambda s, K: 4.0 * K * s.present * s.width + 4.0 * s.classes * s.width,
        "sums and counts of each class are all that a regional server needs to send",
    ),
    "scores": Exchange(
        "class scores of public samples",
        "FedMD, FedGEMS, Fed-ET",
        lambda s: samples_down(s) + payload_bytes(Logits, s.axes()),
        lambda s: payload_bytes(Logits, s.axes()),
        lambda s, K: 1.0 * K * s.samples * s.classes,
        lambda s, K: 4.0 * (K + 1) * s.samples * s.classes,
        "the mean is a sum: regional servers; top-k scores before that",
    ),
    "answers": Exchange(
        "answers to synthetic samples",
        "FedMMKT",
        lambda s: samples_down(s) + payload_bytes(Targets, s.axes(N=s.kept * s.samples)),
        lambda s: payload_bytes(Answers, s.axes()),
        lambda s, K: K * (6.0 * s.samples**2 * s.width + 4.0 * s.samples * s.width + s.samples),
        lambda s, K: 4.0 * (K + 4) * s.samples * s.width + 4.0 * K * s.samples,
        "votes are sharded by samples: each shard needs all anchors, which are one vector a sample, and its own rows",
    ),
    "features": Exchange(
        "features of public pairs",
        "CreamFL, FedMEKT, FedAFD",
        lambda s: payload_bytes(PublicSet, s.axes()) + payload_bytes(Features, s.axes(T=s.width)),
        lambda s: payload_bytes(Features, s.axes()),
        lambda s, K: K * (2.0 * s.samples**2 * s.width + 2.0 * s.samples * s.width),
        lambda s, K: 4.0 * (K + 4) * s.samples * s.width,
        "the comparison is sharded by samples, as the votes are",
    ),
}


def largest_cohort(exchange: Exchange, s: Sizes) -> dict[str, float]:
    """The largest cohort that the memory, the network and the arithmetic of one server allow in a round.

    All three grow in proportion to the cohort, beside what the server has anyhow.
    """
    fixed, one = exchange.memory(s, 0), exchange.memory(s, 1) - exchange.memory(s, 0)
    return {
        "memory": (MEMORY - fixed) / one,
        "network": NETWORK * ROUND / (exchange.up(s) + exchange.down(s)),
        "arithmetic": RATE * ROUND / exchange.operations(s, 1),
    }


# -- the page ----------------------------------------------------------------------------------------------------------


def number(value: float, unit: float = 1.0) -> str:
    """Two significant digits, with separators."""
    value /= unit
    if value >= 100:
        digits = -(math.floor(math.log10(value)) - 1)
        return f"{round(value, digits):,.0f}"
    return f"{value:.2g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [head, *rows]]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(head) - 1), *lines[1:]])


def bytes_table() -> str:
    """A client's bytes in a round, for both sizes."""
    head = ["form", "methods", "up, embedded", "down, embedded", "up, paper", "down, paper"]
    rows = [
        [x.title, x.methods, *(number(way(s), MB) for s in (EMBEDDED, PAPER) for way in (x.up, x.down))]
        for x in EXCHANGES.values()
    ]
    return table(head, rows).replace("|---|---:|", "|---|---|", 1)


def round_table(s: Sizes) -> str:
    """A round of the server by the number of clients: what arrives, what it computes, what it holds."""
    head = ["form", *(f"{count:,} clients" for count in REGISTERED)]
    rows = []
    for x in EXCHANGES.values():
        cells = []
        for count in REGISTERED:
            K = SHARE * count
            told = (number(K * x.up(s), GIB), number(x.operations(s, K), 1e12), number(x.memory(s, K), GIB))
            cells.append(" / ".join(told))
        rows.append([x.title, *cells])
    return table(head, rows)


def limits_table(s: Sizes) -> str:
    """The largest cohort by each limit, and which comes first."""
    head = ["form", "memory", "network", "arithmetic", "breaks first", "what lifts it"]
    rows = []
    for x in EXCHANGES.values():
        most = largest_cohort(x, s)
        first = min(most, key=most.__getitem__)
        rows.append([x.title, *(number(most[key]) for key in ("memory", "network", "arithmetic")), first, x.first])
    return table(head, rows).replace("---:|---:|\n", "---|---|\n", 1)


def root_table(s: Sizes) -> str:
    """What arrives at the root of two levels of servers, for a cohort of 20,000, beside one server."""
    K, edges = 20_000, 141
    edge = {  # bytes of one regional server's message in a round
        "weights": 4.0 * s.weights,
        "modules": 4.0 * s.modules,
        "means": 4.0 * s.classes * (s.width + 1),
        "scores": 4.0 * s.samples * s.classes,
        "answers": 4.0 * s.samples * (2 * s.width + s.classes + 2),
        "features": 4.0 * s.samples * (2 * s.width + 2),
    }
    rows = [
        [x.title, number(K * x.up(s), GIB), number(edges * edge[key], GIB), number(K * x.up(s) / (edges * edge[key]))]
        for key, x in EXCHANGES.items()
    ]
    return table(["form", "one server, GiB in", f"root above {edges} regional servers, GiB in", "less by"], rows)


def check_text(found: Mapping[str, Any]) -> str:
    """What a simulation of many clients measured beside the formula; a sentence of its absence without one."""
    many = found.get("found", {}).get("many", {})
    if "up_bytes" not in many:
        return "`python bench/all.py scale.py` measures it with 1,000 simulated clients; it was not run yet."
    expected = payload_bytes(Weights, {}, many["weights"], int(many["arrays"]))
    return (
        f"With {many['clients']:,.0f} simulated clients and {many['cohort']:.0f} of them in a cohort, a client sent "
        f"{many['up_bytes']:,.0f} and received {many['down_bytes']:,.0f} bytes in a round of FedAvg; the formula says "
        f"{expected:,.0f}. The peak memory of all processes was {found['found']['memory ratio']:.2f} times that of ten "
        f"clients, and the time for each client that took part {found['found']['time ratio']:.2f} times."
    )


def markdown() -> str:
    """The page."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
    text = (Path(__file__).with_name("scaling.md.in")).read_text(encoding="utf-8")
    filled = {
        "bytes": bytes_table(),
        "round": round_table(PAPER),
        "limits": limits_table(PAPER),
        "root": root_table(PAPER),
        "check": check_text(measured),
        "share": f"{100 * SHARE:.0f} %",
        "memory": f"{MEMORY / GIB:.0f} GiB",
        "network": f"{8 * NETWORK / 1e9:.0f} Gbit/s",
        "rate": f"{RATE / 1e9:.0f} GFLOP/s",
        "minutes": f"{ROUND / 60:.0f}",
        "embedded": described(EMBEDDED),
        "paper": described(PAPER),
    }
    for name, value in filled.items():
        text = text.replace(f"{{{{ {name} }}}}", value)
    return text


def described(s: Sizes) -> str:
    """The sizes in words."""
    return (
        f"N = {s.samples}, D = {s.width}, C = {s.classes}, P = {s.weights / 1e6:.3g} million weights, "
        f"{s.modules / 1e6:.3g} million values of modules, {s.image:,} bytes an image, {s.text} a text"
    )


def write() -> None:
    """Write the page."""
    PAGE.write_text(markdown(), encoding="utf-8")


if __name__ == "__main__":
    write()
    print(PAGE.relative_to(ROOT))
