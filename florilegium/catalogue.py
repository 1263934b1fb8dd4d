"""Every method in one place: the classes of its two sides, and the facts that shared code asks instead of its name.

Methods of other packages come in by the entry point group `florilegium.methods` (docs/your-own-method.md). Torch-free:
a report, the command line and the launcher read it without loading a method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

GROUP = "florilegium.methods"  # of the entry points by which other packages add methods


class CatalogueError(ValueError):
    """A method that is not there, or that another package declares wrongly; the one-line message names it."""


class Upload(StrEnum):
    """What a client's answers hold; each is a payload of florilegium/protocol/payloads.py by its name."""

    WEIGHTS = "Weights"
    MODULES = "Modules"
    ANSWERS = "Answers"
    LOGITS = "Logits"
    BOUNDARY = "BoundaryLogits"
    FEATURES = "Features"
    EXAMPLES = "Examples"
    PROTOTYPES = "Prototypes"
    ADAPTERS = "Adapters"


class Role(StrEnum):
    """What an arm stands for when a report compares arms; the value is the word that readers see."""

    METHOD = "method"
    ALONE = "standalone"  # every client learns by itself
    SELF_TUNED = "self-tuned"  # the generator learns from its own samples
    BOUND = "centralised"  # the generator learns from all private data


@dataclass(frozen=True)
class Entry:
    """A method. `server` and `client` name classes as "module:Class"; a method without clients has no client side.

    `modalities` are those of the clients it serves. `one_architecture`: all of them must have the same, since their
    weights are averaged. `modalities_in_groups` are those it serves where `groups: architecture` lets the clients of
    one architecture average among themselves. `segments`: it serves clients whose task is segmentation. `uploads` are all payloads that clients may answer with, under any
    settings, beside their profile and figures. `counts_votes`: labels come from a count of the clients' votes, which
    `privacy.votes` can release. `dpsgd`: clients read private rows only in the training that `privacy.training` covers.
    `variants` are the titles of the values of its setting `variant`. `conf` is the package, as a dotted name, whose
    folder holds method/<name>.yaml; None: this repository's conf/.
    """

    server: str
    client: str | None
    title: str
    paper: str
    exchanges: str
    modalities: tuple[str, ...] = ()
    uploads: tuple[Upload, ...] = ()
    one_architecture: bool = False
    modalities_in_groups: tuple[str, ...] = ()
    segments: bool = False
    counts_votes: bool = False
    dpsgd: bool = False
    role: Role = Role.METHOD
    variants: Mapping[str, str] = field(default_factory=dict)
    conf: str | None = None

    @property
    def clients(self) -> str:
        """The clients it serves, for tables."""
        if not self.modalities:
            return "none (server only)"
        return ("one architecture: " if self.one_architecture else "") + ", ".join(self.modalities)


CLASSIFIERS, ALL = ("image", "text"), ("image", "text", "pair")
AVERAGED = (Upload.WEIGHTS,)
GUIDED = (Upload.WEIGHTS, Upload.EXAMPLES)  # `guidance` may ask for examples, where the client allows it
MODULES = "strategies.modules.averaged_modules:AveragedModules"
PERSONAL = "strategies.averaging.shared_part"


def _averaging(server: str, client: str, title: str, paper: str, exchanges: str = "weights", **facts: object) -> Entry:
    """A method that averages the weights of clients of one architecture."""
    given: dict = {"modalities": CLASSIFIERS, "uploads": GUIDED, "one_architecture": True}
    return Entry(server, client, title, paper, exchanges, **(given | facts))


# fmt: off
# ruff: noqa: E501  (one method, one line)
CATALOGUE: dict[str, Entry] = {
    "fedmmkt":     Entry("strategies.fedmmkt:FedMMKT", "client_app.methods.fedmmkt:FedMMKTClient", "FedMMKT", "arXiv 2510.12254", "answers on synthetic samples", ALL, (Upload.ANSWERS, Upload.LOGITS), counts_votes=True, dpsgd=True, variants={"logit": "l-FedMMKT", "unimodal": "u-FedMMKT"}),
    "fedavg":      _averaging("strategies.fedavg:FedAvg", "client_app.methods.fedavg:FedAvgClient", "FedAvg", "arXiv 1602.05629", modalities_in_groups=ALL, dpsgd=True, segments=True),
    "fedprox":     _averaging("strategies.fedavg:FedAvg", "client_app.methods.fedprox:FedProxClient", "FedProx", "arXiv 1812.06127", segments=True),
    "scaffold":    _averaging("strategies.scaffold:Scaffold", "client_app.methods.scaffold:ScaffoldClient", "SCAFFOLD", "arXiv 1910.06378", "weights, control variates"),
    "fednova":     _averaging("strategies.fednova:FedNova", "client_app.methods.fednova:FedNovaClient", "FedNova", "arXiv 2007.07481", "weights, numbers of steps", dpsgd=True),
    "moon":        _averaging("strategies.fedavg:FedAvg", "client_app.methods.moon:MoonClient", "MOON", "arXiv 2103.16257"),
    "fednh":       _averaging("strategies.fednh:FedNH", "client_app.methods.fednh:FedNHClient", "FedNH", "arXiv 2212.02758", "encoders, class means"),
    "feddifrc":    _averaging("strategies.fedavg:FedAvg", "client_app.methods.feddifrc:FedDifRCClient", "FedDifRC", "arXiv 2507.06482", "weights, one guide", segments=True),
    "semanticfl":  _averaging("strategies.fedavg:FedAvg", "client_app.methods.semanticfl:SemanticFLClient", "SemanticFL", "arXiv 2603.19337", "weights, one guide"),
    "flower":      _averaging("strategies.flower:Flower", "client_app.methods.flower:FlowerClient", "Flower", "Flower's built-in strategies", dpsgd=True),
    "fedbn":       _averaging(f"{PERSONAL}:SharedPart", "client_app.methods.averaging.fedbn:FedBNClient", "FedBN", "arXiv 2102.07623", "weights without normalisation layers"),
    "fedper":      _averaging(f"{PERSONAL}:SharedPart", "client_app.methods.averaging.fedper:FedPerClient", "FedPer", "arXiv 1912.00818", "weights without the last layers"),
    "fedrep":      _averaging(f"{PERSONAL}:SharedPart", "client_app.methods.averaging.fedrep:FedRepClient", "FedRep", "arXiv 2102.07078", "weights without the head"),
    "fedcr":       _averaging("strategies.averaging.fedcr:FedCR", "client_app.methods.averaging.fedcr:FedCRClient", "FedCR", "ICML 2023, Zhang et al.", "weights without the head, Gaussians of classes"),
    "feddyn":      _averaging("strategies.averaging.feddyn:FedDyn", "client_app.methods.averaging.feddyn:FedDynClient", "FedDyn", "arXiv 2111.04263"),
    "feddisco":    _averaging("strategies.averaging.feddisco:FedDisco", "client_app.methods.averaging.feddisco:FedDiscoClient", "FedDisco", "arXiv 2305.19229", "weights, unevenness of classes"),
    "fedcda":      _averaging("strategies.averaging.fedcda:FedCDA", "client_app.methods.fedavg:FedAvgClient", "FedCDA", "ICLR 2024, Wang et al."),
    "fedrcl":      _averaging("strategies.fedavg:FedAvg", "client_app.methods.averaging.fedrcl:FedRCLClient", "FedRCL", "arXiv 2401.04928"),
    "fpl":         _averaging("strategies.averaging.fpl:FPL", "client_app.methods.averaging.fpl:FPLClient", "FPL", "CVPR 2023, Huang et al.", "weights, class means"),
    "fedproto":    Entry("strategies.prototypes.fedproto:FedProto", "client_app.methods.prototypes.fedproto:FedProtoClient", "FedProto", "arXiv 2105.00243", "class means", CLASSIFIERS, (Upload.PROTOTYPES,)),
    "fedktl":      Entry("strategies.prototypes.fedktl:FedKTL", "client_app.methods.prototypes.fedktl:FedKTLClient", "FedKTL", "arXiv 2403.15760", "class means; an image a class down", CLASSIFIERS, (Upload.PROTOTYPES,)),
    "lorafl":      Entry(MODULES, "client_app.methods.modules.lorafl:LoRAFLClient", "LoRA-FL", "arXiv 2510.12254, Table VII", "low-rank factors", CLASSIFIERS, (Upload.ADAPTERS,)),
    "biasfl":      Entry(MODULES, "client_app.methods.modules.biasfl:BiasFLClient", "Bias-FL", "arXiv 2510.12254, Table VII", "biases", CLASSIFIERS, (Upload.ADAPTERS,)),
    "feddat":      Entry("strategies.modules.feddat:FedDAT", "client_app.methods.modules.feddat:FedDATClient", "FedDAT", "arXiv 2308.12305", "adapters", CLASSIFIERS, (Upload.ADAPTERS,)),
    "disentafl":   Entry(MODULES, "client_app.methods.modules.disentafl:DisentAFLClient", "DisentAFL", "AAAI 2024, Chen and Zhang", "experts of modalities and tasks", ALL, (Upload.ADAPTERS,)),
    "fedmbridge":  Entry("strategies.modules.fedmbridge:FedMBridge", "client_app.methods.modules.fedmbridge:FedMBridgeClient", "FedMBridge", "ICML 2024, Chen and Zhang", "bridges that a hypernetwork makes", ALL, (Upload.ADAPTERS,)),
    "fedcola":     Entry("strategies.modules.fedcola:FedCola", "client_app.methods.modules.fedcola:FedColaClient", "FedCola", "arXiv 2404.12467", "weights; attention of a modality", ALL, (Upload.ADAPTERS,)),
    "fedmd":       Entry("strategies.logits.fedmd:FedMD", "client_app.methods.logits.fedmd:FedMDClient", "FedMD", "arXiv 1910.03581", "class scores of public samples", ALL, (Upload.LOGITS,), dpsgd=True),
    "fedgems":     Entry("strategies.logits.fedgems:FedGEMS", "client_app.methods.logits.fedgems:FedGEMSClient", "FedGEMS", "arXiv 2110.11027", "class scores of public samples", ALL, (Upload.LOGITS,), dpsgd=True),
    "fedet":       Entry("strategies.logits.fedet:FedET", "client_app.methods.logits.fedet:FedETClient", "Fed-ET", "arXiv 2204.12703", "class scores of public samples", ALL, (Upload.LOGITS,), dpsgd=True),
    "feddfa":      Entry("strategies.logits.feddfa:FedDFA", "client_app.methods.logits.feddfa:FedDFAClient", "Fed-DFA", "AAAI 2025, Wang et al.", "class scores, steps to the boundary", ALL, (Upload.BOUNDARY,), dpsgd=True),
    "creamfl":     Entry("strategies.representations.creamfl:CreamFL", "client_app.methods.representations.creamfl:CreamFLClient", "CreamFL", "arXiv 2302.08888", "features of public pairs", ALL, (Upload.FEATURES, Upload.ANSWERS), counts_votes=True, dpsgd=True),
    "fedmekt":     Entry("strategies.representations.fedmekt:FedMEKT", "client_app.methods.representations.fedmekt:FedMEKTClient", "FedMEKT", "arXiv 2307.13214", "embeddings of public samples", ALL, (Upload.FEATURES, Upload.ANSWERS), counts_votes=True, dpsgd=True),
    "fedmkd":      Entry("strategies.representations.fedmkd:FedMKD", "client_app.methods.representations.fedmkd:FedMKDClient", "FedMKD", "NeurIPS 2024, Li et al.", "features of public pairs", ALL, (Upload.FEATURES, Upload.ANSWERS), counts_votes=True, dpsgd=True),
    "fedafd":      Entry("strategies.fedafd:FedAFD", "client_app.methods.fedafd.client:FedAFDClient", "FedAFD", "arXiv 2603.04890", "features of public pairs, encoders", ALL, (Upload.FEATURES,)),
    "standalone":  Entry("strategies.standalone:Standalone", "client_app.methods.standalone:StandaloneClient", "Standalone", "arXiv 2510.12254, Table I", "nothing (reference)", ALL, dpsgd=True, role=Role.ALONE, segments=True),
    "selftuned":   Entry("strategies.selftuned:SelfTuned", None, "Self-tuned T2I", "arXiv 2510.12254, Table II", "nothing (reference)", role=Role.SELF_TUNED),
    "centralised": Entry("strategies.centralised:Centralised", None, "Centralised T2I", "arXiv 2510.12254, Table II", "private data (upper bound)", role=Role.BOUND),
}
# fmt: on


# -- methods of other packages -----------------------------------------------------------------------------------------


@cache
def _installed() -> tuple[dict[str, Entry], dict[str, str]]:
    """The entries of other packages by the method's name, and what is wrong with those that cannot be used."""
    found: dict[str, Entry] = {}
    wrong: dict[str, str] = {}
    # one distribution that is found twice on the path has equal entry points
    for point in sorted(set(entry_points(group=GROUP)), key=lambda point: (point.name, point.value)):
        try:
            if point.name in CATALOGUE or point.name in found:
                raise CatalogueError("another method has this name")
            found[point.name] = _checked(point.name, point.load())
        except Exception as error:  # the import of a foreign module may raise anything
            kind = "" if isinstance(error, CatalogueError) else f"{type(error).__name__}: "
            line = (str(error).strip().splitlines() or [""])[0]
            wrong[point.name] = f"the method {point.name} ({point.value}) cannot be used: {kind}{line}"
    return found, wrong


def _checked(name: str, made: object) -> Entry:
    """What an entry point gave, if it is a whole entry. CatalogueError."""
    if not isinstance(made, Entry):
        raise CatalogueError(f"it is a {type(made).__name__}, not a florilegium.catalogue.Entry")
    if made.conf is None:
        raise CatalogueError(f"its entry names no `conf`, the package that has method/{name}.yaml")
    if not any((folder / "method" / f"{name}.yaml").is_file() for folder in _folders(made.conf)):
        raise CatalogueError(f"there is no file method/{name}.yaml in the package {made.conf}")
    return made


def _folders(package: str) -> list[Path]:
    """The directories of a package; none of one that is not there."""
    spec = find_spec(package)
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []


def problems() -> dict[str, str]:
    """One line for each method of another package that cannot be used."""
    return _installed()[1]


def conf_folders() -> list[Path]:
    """Folders beside conf/ in which Hydra looks for YAML: those of other packages' methods."""
    found = [folder for e in _installed()[0].values() for folder in _folders(str(e.conf))]
    return list(dict.fromkeys(found))


# -- questions ---------------------------------------------------------------------------------------------------------


def entries() -> dict[str, Entry]:
    """All methods: ours in the order of the catalogue, then those of other packages by name."""
    return CATALOGUE | _installed()[0]


def entry(method: str) -> Entry:
    """The facts of a method. CatalogueError names the methods there are."""
    if method in CATALOGUE:
        return CATALOGUE[method]
    if method in entries():
        return entries()[method]
    raise CatalogueError(problems().get(method) or f"no method {method!r}; there are {', '.join(sorted(entries()))}")


def side(method: str, which: str) -> type[Any] | None:
    """The class of a method's `server` or `client` side; None without clients. CatalogueError."""
    reference = getattr(entry(method), which)
    if reference is None:
        return None
    module, _, name = reference.partition(":")
    found: type[Any] | None = getattr(import_module(module), name, None)
    if found is None:
        raise CatalogueError(f"the method {method} names {reference}, but {module} has no {name}")
    return found


def with_modality(modality: str) -> list[str]:
    """The methods that serve clients of this modality."""
    return [name for name, e in entries().items() if modality in e.modalities]


def title(method: str, variant: str | None = None) -> str:
    """A method's name for a reader; the bare word for a method that is not installed here."""
    found = entries().get(method)
    return method if found is None else found.variants.get(variant or "", found.title)


def role(method: str) -> Role:
    """What an arm of this method stands for; a method that is not installed here is a method."""
    found = entries().get(method)
    return Role.METHOD if found is None else found.role


# -- tables ------------------------------------------------------------------------------------------------------------


def methods_table(entries: Mapping[str, Entry]) -> list[tuple[str, str, str, str]]:
    """(name, paper, what crosses the wire, clients) of every method."""
    return [(name, e.paper, e.exchanges, e.clients) for name, e in entries.items()]


def methods_markdown() -> str:
    """Our own methods as an aligned Markdown table, for the README."""
    rows = [("method", "paper", "what crosses the wire", "clients"), *methods_table(CATALOGUE)]
    wide = [max(len(row[n]) for row in rows) for n in range(4)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in wide) + "|", *lines[1:]])
