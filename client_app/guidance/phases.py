"""Guidance at the client: the terms a frozen diffusion model adds to any local objective (server: strategies/blocks).

The server's guide (shared projection, anchors) comes once and is kept by version; what the frozen model sees in the
client's own rows is taken once, through a cache on disk. Nothing of it is sent but, where `allow_upload` says so, the
client's labelled images. Axes: B batch, N rows, Q features of a row, D width, W text width.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from client_app.batches import ClientError
from client_app.client import Client
from client_app.guidance.frozen_features import GUIDE, FrozenFeatures, under
from florilegium.data.stored_images import picked
from florilegium.diffusion.projection import Projection
from florilegium.methods.guidance.settings import GuidanceSettings
from florilegium.methods.guidance.student import STUDENT
from florilegium.protocol import pixels
from florilegium.protocol.payloads import Examples, Guide, Nothing, Report
from florilegium.protocol.phases import crosses

# -- the server's words ------------------------------------------------------------------------------------------------


def crossing(settings: Any) -> tuple[tuple[type, ...], tuple[type, ...]]:
    """What these settings of a side let come down and go up in `represent` (florilegium/protocol/phases.py)."""
    s: GuidanceSettings = settings.guidance
    if s.name == "none":
        return (), ()
    return ((Guide, Nothing), (Report, Examples)) if s.uploads else ((Guide,), (Report,))


@crosses(crossing)
def represent(side: Any, client: Client, down: Guide | Nothing) -> Report | Examples:
    """The `represent` phase of a client side with guidance: keep a guide and look once, or upload own rows.

    ClientError where nothing allows an upload, or the guide does not fit this client.
    """
    s: GuidanceSettings = side.settings.guidance
    if isinstance(down, Nothing):
        if not s.uploads:
            raise ClientError("no image leaves this client: guidance neither extracts nor makes anchors at the server")
        rows = client.data.train
        order = rows.ids.argsort()
        return Examples(rows.ids[order], rows.labels[order], tuple(pixels.encode(picked(rows.images, order), "png")))
    check_guide(client, s, down)
    arrays = {f.name: getattr(down, f.name) for f in fields(down) if "array" in f.metadata}
    tensors = {**down.tensors, **arrays}
    client.memory.keep(GUIDE, tensors, {"version": down.version})
    frozen = FrozenFeatures(client, s, tensors, down.version)
    if s.feddifrc_on and s.feddifrc.condition == "none":
        frozen.features()
        if client.classifier.dense:
            frozen.maps()
    if s.semanticfl_on and s.semanticfl.source == "private_local":
        frozen.levels()
    return Report(frozen.counted(), client.examples)


def check_guide(client: Client, s: GuidanceSettings, guide: Guide) -> None:
    """ClientError for a guide that this client's rows and model cannot use."""
    if s.feddifrc_on:
        try:
            width = Projection.of(under("pca", guide.tensors)).width
        except ValueError as error:
            raise ClientError(f"the guide's projection: {error}") from error
        if width != client.width:
            raise ClientError(f"the guide projects to {width}, this client's representations are {client.width} wide")
        if s.feddifrc.location == "server" and len(guide.ids) != client.examples:
            raise ClientError(f"the guide has features of {len(guide.ids)} rows, this client has {client.examples}")
    if s.semanticfl_on and guide.visual.numel() and guide.visual.shape[-1] != client.width:
        raise ClientError(f"anchors are {guide.visual.shape[-1]} wide, representations {client.width}")
    check_shown(client, s, guide)


def check_shown(client: Client, s: GuidanceSettings, guide: Guide) -> None:
    """ClientError for a student of another architecture, and for features that are missing or not of this width."""
    if s.semanticfl_on and s.semanticfl.teaches:
        own, sent = client.classifier.state_dict(), under(STUDENT, guide.tensors)
        for name in [*own, *sent]:
            if name not in own or name not in sent or own[name].shape != sent[name].shape:
                raise ClientError(f"the guide's student does not fit {client.architecture}: {name} differs")
    wanted = {
        "replay": s.semanticfl_on and s.semanticfl.replay,
        "unprompted": s.feddifrc_on and s.feddifrc.shows_images,
        "prompted": s.feddifrc_on and s.feddifrc.shows_images,
    }
    for name in (name for name, there in wanted.items() if there):
        many, wide = getattr(guide, name).shape
        if not many or wide != client.width:
            raise ClientError(f"the guide's {name} has {many} features of {wide}, representations have {client.width}")
