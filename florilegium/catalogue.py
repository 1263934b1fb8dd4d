"""Every method, one line each: its two halves, what crosses the wire, for whom, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Entry:
    """`server` and `client` name classes; a method without clients has no client half."""

    server: str
    client: str | None
    exchanges: str
    modality: str
    paper: str


# fmt: off
# ruff: noqa: E501  (one method, one line)
CATALOGUE = {
    "fedmmkt":     Entry("strategies.fedmmkt:FedMMKT",         "client_app.methods.fedmmkt:FedMMKTClient",       "answers on synthetic samples", "image, text", "arXiv 2510.12254"),
    "fedavg":      Entry("strategies.fedavg:FedAvg",           "client_app.methods.fedavg:FedAvgClient",         "weights",                      "one",         "arXiv 1602.05629"),
    "fedprox":     Entry("strategies.fedavg:FedAvg",           "client_app.methods.fedprox:FedProxClient",       "weights",                      "one",         "arXiv 1812.06127"),
    "scaffold":    Entry("strategies.scaffold:Scaffold",       "client_app.methods.scaffold:ScaffoldClient",     "weights, control variates",    "one",         "arXiv 1910.06378"),
    "fednova":     Entry("strategies.fednova:FedNova",         "client_app.methods.fednova:FedNovaClient",       "weights, numbers of steps",    "one",         "arXiv 2007.07481"),
    "moon":        Entry("strategies.fedavg:FedAvg",           "client_app.methods.moon:MoonClient",             "weights",                      "one",         "arXiv 2103.16257"),
    "fednh":       Entry("strategies.fednh:FedNH",             "client_app.methods.fednh:FedNHClient",           "encoders, class means",        "one",         "arXiv 2212.02758"),
    "feddifrc":    Entry("strategies.fedavg:FedAvg",           "client_app.methods.feddifrc:FedDifRCClient",     "weights, one guide",           "one",         "arXiv 2507.06482"),
    "semanticfl":  Entry("strategies.fedavg:FedAvg",           "client_app.methods.semanticfl:SemanticFLClient", "weights, one guide",           "one",         "arXiv 2603.19337"),
    "flower":      Entry("strategies.flower:Flower",           "client_app.methods.flower:FlowerClient",         "weights",                      "one",         "Flower's built-in strategies"),
    "fedmd":       Entry("strategies.fedmd:FedMD",             "client_app.methods.logits:LogitsClient",         "class scores of public samples", "image, text, pair", "arXiv 1910.03581"),
    "fedgems":     Entry("strategies.fedgems:FedGEMS",         "client_app.methods.logits:LogitsClient",         "class scores of public samples", "image, text, pair", "arXiv 2110.11027"),
    "fedet":       Entry("strategies.fedet:FedET",             "client_app.methods.logits:LogitsClient",         "class scores of public samples", "image, text, pair", "arXiv 2204.12703"),
    "creamfl":     Entry("strategies.creamfl:CreamFL",         "client_app.methods.creamfl:CreamFLClient",       "features of public pairs",     "image, text, pair", "arXiv 2302.08888"),
    "fedmekt":     Entry("strategies.fedmekt:FedMEKT",         "client_app.methods.fedmekt:FedMEKTClient",       "embeddings of public samples", "image, text, pair", "arXiv 2307.13214"),
    "fedafd":      Entry("strategies.fedafd:FedAFD",           "client_app.methods.fedafd.client:FedAFDClient",         "features of public pairs, encoders", "image, text, pair", "arXiv 2603.04890"),
    "standalone":  Entry("strategies.standalone:Standalone",   "client_app.methods.standalone:StandaloneClient", "nothing (reference)",          "image, text, pair", "arXiv 2510.12254, Table I"),
    "selftuned":   Entry("strategies.selftuned:SelfTuned",     None,                                             "nothing (reference)",          "server only", "arXiv 2510.12254, Table II"),
    "centralised": Entry("strategies.centralised:Centralised", None,                                             "private data (upper bound)",   "server only", "arXiv 2510.12254, Table II"),
}
# fmt: on


def half(method: str, side: str) -> type | None:
    """The class of a method's `server` or `client` half; ValueError names the methods there are."""
    if method not in CATALOGUE:
        raise ValueError(f"no method {method!r}; there are {', '.join(sorted(CATALOGUE))}")
    reference = getattr(CATALOGUE[method], side)
    if reference is None:
        return None
    module, name = reference.split(":")
    return getattr(import_module(module), name)


# -- tables ------------------------------------------------------------------------------------------------------------


def methods_table() -> list[tuple[str, str, str, str]]:
    """(name, paper, exchanges, modality) of every method, for `florilegium methods`."""
    return [(name, entry.paper, entry.exchanges, entry.modality) for name, entry in CATALOGUE.items()]


def methods_markdown() -> str:
    """The same as an aligned Markdown table, for the README."""
    rows = [("method", "paper", "what crosses the wire", "clients"), *methods_table()]
    wide = [max(len(row[n]) for row in rows) for n in range(4)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in wide) + "|", *lines[1:]])
