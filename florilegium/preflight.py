"""Every check that is made before a run starts: settings of both sides of every arm, clients, data, privacy.

Nothing imports this module but what starts a run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from florilegium import assets, catalogue
from florilegium.config.clients import SEGMENTATION
from florilegium.config.composition import Arm, Settings, SettingsError, arms, first_line
from florilegium.config.data import MODALITIES
from florilegium.config.instances import to_plain
from florilegium.config.privacy import PrivacySettings
from florilegium.data.datasets import at_sites, classes_of
from florilegium.data.partition import partition
from florilegium.diffusion.captions import check_room
from florilegium.diffusion.generator import device_of
from florilegium.methods.guidance.prompts import class_prompts
from florilegium.methods.guidance.settings import GuidanceSettings
from florilegium.models import bodies, build, checkpoints
from florilegium.privacy import accountants, coverage
from florilegium.protocol import phases


def check_guard(conf: Any) -> None:
    """Settings of defence and privacy, and whether they cover what every arm sends. SettingsError."""
    defence, given = conf.defence, conf.privacy
    if not (given.representations or given.votes or given.training or defence.active):
        return
    try:
        counts = catalogue.entry(conf.method.name).counts_votes
        if given.representations or given.votes or given.training:
            accountants.opacus_accountant()
    except ValueError as error:
        raise SettingsError(str(error)) from error
    if given.votes and not counts:
        raise SettingsError(
            f"privacy.votes: {conf.method.name} counts no votes of clients; these do:"
            f" {', '.join(name for name, e in catalogue.entries().items() if e.counts_votes)}"
        )
    for arm, node in arms(conf).items():
        if refused := refused_crossing(node, given, defence.active):
            raise SettingsError(f"{refused} ({node.name}, {arm})")


def refused_crossing(node: Arm, given: PrivacySettings, defended: bool) -> str | None:
    """Why the messages that an arm declares may not cross under these settings; None where they may."""
    entry, Half = catalogue.entry(node.name), catalogue.side(node.name, "client")
    if Half is None:
        return None
    if given.training and not entry.dpsgd:
        those = ", ".join(name for name, e in catalogue.entries().items() if e.dpsgd)
        return f"privacy.training: {node.name} reads private rows in ways of its own; DP-SGD covers {those}"
    spoken = phases.phases_of(Half, phases.exchanges_of(node))
    kinds = [phases.declared(Half, phase, node.client) for phase in spoken]
    Server: Any = catalogue.side(node.name, "server")
    left_empty = Server.left_empty(node.server)
    left_empty |= {name.replace("Targets.", "Joined.") for name in left_empty}
    return next(filter(None, _refusals(kinds, given, defended, left_empty)), None)


def _refusals(
    kinds: list[phases.Kinds], given: PrivacySettings, defended: bool, left_empty: frozenset[str]
) -> Iterator[str | None]:
    for _, up in kinds:
        for kind in up:
            yield coverage.refused_upload(kind, given)
            yield coverage.undefended(kind) if defended else None
    for down, _ in kinds:
        yield from (coverage.refused_download(kind, given, left_empty) for kind in down)


def check_guidance(conf: Any, s: GuidanceSettings, where: str) -> None:
    """ValueError for guidance that these clients, data and features cannot have; one line that names the key."""
    if s.name == "none":
        return
    if other := [m.modality for m in conf.clients.mix if m.modality != "image"]:
        raise ValueError(f"{where}.name: {s.name} guides image clients, clients.mix has {other[0]} clients")
    if conf.clients.task == SEGMENTATION and (wrong := s.without_maps):
        raise ValueError(f"{where}.{wrong} has no form for clients.task=segmentation")
    models = sorted({m.model for m in conf.clients.mix})
    if s.one_architecture and len(models) > 1:
        raise ValueError(f"{where}.{s.one_architecture} serves one architecture, clients.mix has {', '.join(models)}")
    if (width := sum(conf.diffusion.features.dims)) != conf.clients.width:
        raise ValueError(
            f"diffusion.features.dims sum to {width}, clients.width is {conf.clients.width}; "
            f"{where}.name={s.name} compares the two"
        )
    try:
        class_prompts(classes_of(conf.data), s)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{where}: {error}") from error


def validate(conf: Settings) -> None:
    """Check everything that can be wrong before anything starts: both sides of every arm, the clients, the data."""
    for arm, node in arms(conf).items():
        try:
            catalogue.entry(node.name)
        except catalogue.CatalogueError as error:
            raise SettingsError(f"{arm}: {error}") from error
    _validate_clients(conf)
    _validate_data(conf)
    _validate_checkpoints(conf)
    _validate_diffusion(conf)
    _validate_wire(conf)
    check_guard(conf)
    if conf.runtime.name != "deployment":  # there the clients' data are their own
        partition(conf)
    for arm, node in arms(conf).items():
        for given in (node.server, node.client):
            _validate_guidance(conf, getattr(given, "guidance", None), f"{arm}.client.guidance")


def hidden_gpu(conf: Settings) -> str | None:
    """A warning where the clients of a simulation want the GPU and Ray hides it from them; None elsewhere."""
    if conf.runtime.name != "simulation" or conf.runtime.client_gpus != 0:
        return None
    if not device_of(conf.clients.device).startswith("cuda"):
        return None
    return (
        f"warning: clients.device={conf.clients.device}, but Ray hides the GPU from the clients as long as "
        "runtime.client_gpus is 0; without it four clients share a GPU"
    )


def _validate_clients(conf: Settings) -> None:
    mix = conf.clients.mix
    if not mix:
        raise SettingsError("clients.mix is empty: list at least one {modality, model}")
    for k, member in enumerate(mix):
        if member.modality not in MODALITIES or not member.model:
            raise SettingsError(
                f"clients.mix[{k}]: a client has a modality ({', '.join(MODALITIES)}) "
                f"and a model, got {to_plain(member)}"
            )
        try:
            build.check_architecture(member.modality, member.model, f"clients.mix[{k}]", conf.clients.architectures)
        except bodies.ModelError as error:
            raise SettingsError(str(error)) from error
    if conf.timeouts.quorum > len(mix):
        raise SettingsError(f"timeouts.quorum is {conf.timeouts.quorum}, but there are {len(mix)} clients")
    if conf.privacy.training and conf.clients.precision != "float32":
        raise SettingsError("clients.precision: DP-SGD clips the gradient of each row, which needs float32")
    _validate_pairs(conf)
    _validate_segmentation(conf)
    architectures = sorted({f"{member.modality} {member.model}" for member in mix})
    for arm, node in arms(conf).items():
        entry = catalogue.entry(node.name)
        apart = getattr(node.server, "groups", "none") != "none"
        if entry.one_architecture and len(architectures) > 1 and not apart:
            raise SettingsError(
                f"{arm}: {node.name} averages weights and needs one architecture; "
                f"clients.mix has {', '.join(architectures)}"
            )


def _validate_checkpoints(conf: Settings) -> None:
    """The checkpoint of every kind of client, where clients share this machine's files. SettingsError."""
    if conf.runtime.name == "deployment":  # each site looks at its own when it is asked who it is
        return
    for modality, model in sorted({(str(member.modality), str(member.model)) for member in conf.clients.mix}):
        try:
            checkpoints.check(conf.clients, modality, model)
        except bodies.ModelError as error:
            raise SettingsError(first_line(error)) from error


def _validate_pairs(conf: Settings) -> None:
    """Clients that retrieve, and methods that have something for them to do. SettingsError."""
    those = [k for k, member in enumerate(conf.clients.mix) if member.modality == "pair"]
    for arm, node in arms(conf).items():
        entry = catalogue.entry(node.name)
        apart = getattr(node.server, "groups", "none") == "architecture"
        served = entry.modalities_in_groups if apart else entry.modalities
        if those and entry.client and "pair" not in served:
            ways = ", ".join(catalogue.with_modality("pair"))
            raise SettingsError(
                f"{arm}: {node.name} has nothing for pair clients (clients.mix[{those[0]}]); these have: {ways}"
            )


def _validate_segmentation(conf: Settings) -> None:
    """Where the task is segmentation: image clients whose body has maps, and methods that serve them. SettingsError."""
    if conf.clients.task != SEGMENTATION:
        return
    for k, member in enumerate(conf.clients.mix):
        if member.modality != "image" or member.model not in build.ARCHITECTURES["image"]:
            there = ", ".join(build.ARCHITECTURES["image"])
            raise SettingsError(f"clients.mix[{k}]: clients.task=segmentation takes image clients of {there}")
    if conf.privacy.training:
        raise SettingsError("privacy.training: DP-SGD has no form for clients.task=segmentation")
    for arm, node in arms(conf).items():
        entry = catalogue.entry(node.name)
        if entry.client and not entry.segments:
            ways = ", ".join(name for name, e in catalogue.entries().items() if e.segments)
            raise SettingsError(f"{arm}: {node.name} has nothing for clients.task=segmentation; these have: {ways}")


def _validate_data(conf: Settings) -> None:
    """The data directory is there and its files look like what they claim to be. AssetError, SettingsError."""
    if at_sites(conf.data) and conf.runtime.name != "deployment":
        raise SettingsError(
            f"data=sites: these rows are at the sites of a runtime=deployment, not of runtime={conf.runtime.name}"
        )
    given = conf.data.prepared or conf.data.path
    if not conf.data.own and any(member.data for member in conf.clients.mix):
        raise SettingsError("clients.mix: a client has `data` of its own only with data=folder, table, pairs or saved")
    if conf.data.hub or conf.data.hub_domains:
        return  # opened as a whole below, where the rows are dealt
    place = Path(given) if given else assets.path("data", conf.data.name)
    if not given and not (place / "classes.json").exists():
        raise assets.AssetError(f"{place / 'classes.json'} is missing (`make assets` rebuilds the data)")
    for file in sorted(place.glob("*.parquet")):
        with open(file, "rb") as stream:
            head = stream.read(4)
            stream.seek(-4, os.SEEK_END) if file.stat().st_size >= 8 else None
            if head != b"PAR1" or stream.read(4) != b"PAR1":
                raise assets.AssetError(f"{file} is not a whole Parquet file (`make assets` rebuilds it)")


def _validate_diffusion(conf: Settings) -> None:
    """The settings of the generator, and that each of its embedded models is there. SettingsError, AssetError."""
    given = conf.diffusion
    for model in filter(None, (given.model, given.captioner, given.clip, given.distilled)):
        if "/" not in model and not Path(model).is_dir():  # neither a hub id nor a directory
            assets.path("models", model)
    check_room(assets.located(given.captioner), given.captions)


def _validate_wire(conf: Settings) -> None:
    """A projection makes representations shorter. SettingsError."""
    given, width = conf.wire.projection, conf.clients.width
    if given is not None and given >= width:
        raise SettingsError(f"wire.projection is {given}, it must be below clients.width, which is {width}")


def _validate_guidance(conf: Settings, given: Any, where: str) -> None:
    """That the clients, data and features suit a side's guidance, where it has one. SettingsError."""
    if given is None:
        return
    try:
        check_guidance(conf, given, where)
    except ValueError as error:
        raise SettingsError(first_line(error)) from error
