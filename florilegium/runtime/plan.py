"""What a run will need: GPU memory, disk, hours and bytes, estimated from its settings before anything is fetched.

From weights and operations of the decoder (meta device), the clients' models where they are known, and the rate of
matrix products measured on this machine in seconds. An estimate: within a factor of two, activations least surely.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from florilegium.assets import AssetError, located
from florilegium.config.diffusion import TuneSettings
from florilegium.config.settings import Settings
from florilegium.diffusion.generator import device_of
from florilegium.diffusion.glide.sampling import respaced
from florilegium.diffusion.sizes import DecoderSize, decoder_size
from florilegium.runtime import client_plan

GIB, MB = 2**30, 2**20
UTILISATION = 0.33  # of the rate of large products that a decoder reaches (bare diffusers on an H100, bf16)
ENOUGH = 0.92  # share of a GPU's memory that a run may fill


@dataclass
class Plan:
    """Lines of (what, value, how it was found), and what to lower where memory does not suffice."""

    lines: list[tuple[str, str, str]] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    def say(self, what: str, value: str, how: str) -> None:
        self.lines.append((what, value, how))

    def needs(self, what: str, bytes_: float, memory: float | None, lower: Callable[[], str]) -> None:
        """Say what GPU memory something takes, and what to lower where `memory` is too little for it."""
        self.say(f"GPU memory, {what}", f"{bytes_ / GIB:.1f} GiB", "weights and activations")
        if memory is not None and bytes_ > ENOUGH * memory:
            self.advice.append(f"{what} needs {bytes_ / GIB:.0f} GiB of {memory / GIB:.0f}: {lower()}")


def plan(conf: Settings, rate: float | None = None, memory: float | None = None) -> Plan:
    """The plan of one run. `rate`: FLOP/s of large products, None: measured here; `memory`: bytes of the GPU, None:
    this machine's, if there is one. ValueError for a pipeline that no backend opens."""
    made = Plan()
    device = device_of(conf.diffusion.device)
    how = "as given" if rate else f"{device}, {conf.diffusion.dtype}, measured now"
    given, rate = rate, rate or measured_rate(device, conf.diffusion.dtype)
    made.say("matrix products", f"{rate / 1e12:.3g} TFLOP/s", how)
    if memory is None and device.startswith("cuda"):
        memory = float(torch.cuda.get_device_properties(device).total_memory)
    uses = [arm for arm in conf.arms().values() if hasattr(arm.server, "t2i")]
    looks = client_plan.looks(conf)
    size = _decoder(conf, made) if uses or looks else None
    hours = 0.0
    if size is not None and uses:
        hours += _generator(conf, made, size, uses, rate, memory)
    if size is not None and looks is not None:
        _looking(conf, made, size, looks, rate, memory)
    sizes = client_plan.sizes_of(conf)
    _clients(conf, made, sizes, given, memory)
    _disk(conf, made, size if uses else None, sizes, looks)
    if hours:
        made.say("hours of the generator", f"{hours:.2g}", "all arms and rounds")
    return made


def measured_rate(device: str, dtype: str) -> float:
    """FLOP/s of products of square matrices: a second or two."""
    kind, side = getattr(torch, dtype), 8192 if device.startswith("cuda") else 768
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    best = 0.0
    for _ in range(4):
        before = time.perf_counter()
        (a @ b).sum().item()
        best = max(best, 2 * side**3 / (time.perf_counter() - before))
    return best


def _decoder(conf: Settings, made: Plan) -> DecoderSize | None:
    try:
        place = located(conf.diffusion.model)
    except AssetError:
        place = conf.diffusion.model
    size = decoder_size(place)
    if size is None:
        made.say("decoder", "unknown", f"{place} is not on this machine; download it and name its directory")
    else:
        made.say("decoder", f"{size.weights / 1e6:,.0f} M weights", f"{size.name}, {size.native} pixels")
    return size


def _generator(
    conf: Settings, made: Plan, size: DecoderSize, uses: list[Any], rate: float, memory: float | None
) -> float:
    """Says memory of synthesis and tuning; hours."""
    s, t = conf.diffusion, uses[0].server.t2i
    passes = 2 if s.guidance > 1 and s.distilled is None else 1
    made.needs("synthesis", drawing_memory(size, s.dtype, s.batch), memory, lambda: lower_drawing(size, s))
    made.needs("tuning", tuning_memory(size, t, s.dtype), memory, lambda: lower_tuning(size, t, s.dtype))
    enlarged = size.upsampling * len(respaced(s.upsample_steps, 1000)) if size.upsampling and s.upsample else 0.0
    operations = 0.0
    for arm in uses:
        samples = int(
            getattr(arm.server, "samples", 0) or getattr(getattr(arm.server, "public", None), "samples", 0) or 0
        )
        own = arm.server.t2i
        factor, tuned = (4 if own.checkpointing else 3), own.steps * own.batch if own.steps else own.epochs * samples
        drawn = samples * (size.flops * s.steps * passes + enlarged)
        operations += conf.rounds * (drawn + factor * size.flops * tuned)
    return operations / (UTILISATION * rate) / 3600


def drawing_memory(size: DecoderSize, dtype: str, batch: int) -> float:
    """Bytes of synthesis: the weights, and the widest layers of the VAE's decoder, three of them alive."""
    return bytes_of(dtype) * (size.weights + size.frozen + 3 * batch * size.native**2 * 256)


def tuning_memory(size: DecoderSize, t: TuneSettings, dtype: str) -> float:
    """Bytes of fine-tuning: frozen parts, trained weights with average, gradient and moments, and activations."""
    held, trained = bytes_of(dtype), trained_weights(size, t)
    own = (12 + moments_bytes(t)) * trained + (0 if t.lora is None else size.weights * held)
    kept = 0.15 if t.checkpointing else 1.0
    return size.frozen * held + own + kept * t.batch * size.flops / 800 * held / 2


def trained_weights(size: DecoderSize, t: TuneSettings) -> float:
    """Weights that fine-tuning trains: the decoder's, or those of the adapters."""
    return size.weights if t.lora is None else 4 * t.lora * 1280 * 64


def bytes_of(dtype: str) -> int:
    """Bytes of a weight."""
    return 2 if dtype == "bfloat16" else 4


def lower_drawing(size: DecoderSize, s: Any) -> str:
    """Which setting of synthesis to lower: the one that saves most."""
    if s.dtype == "float32" and drawing_memory(size, "bfloat16", s.batch) < drawing_memory(size, s.dtype, 1):
        return "diffusion.dtype=bfloat16 halves it"
    return f"lower diffusion.batch ({s.batch})"


def lower_tuning(size: DecoderSize, t: TuneSettings, dtype: str) -> str:
    """Which setting of fine-tuning to lower: the one that saves most by this estimate."""
    ways: dict[str, dict[str, Any]] = {
        "tuning.checkpointing=true": {"checkpointing": True},
        "tuning.moments=int8 holds Adam's moments in 8 bits": {"moments": "int8"},
        "tuning.lora=16 trains adapters alone": {"lora": min(t.lora or 16, 16)},
        f"lower tuning.batch ({t.batch})": {"batch": 1},
    }
    left = {}
    for way, values in ways.items():
        try:
            left[way] = tuning_memory(size, replace(t, **values), dtype)
        except ValueError:  # it needs a package that is not here
            continue
    return min(left, key=lambda way: left[way])


def _looking(
    conf: Settings, made: Plan, size: DecoderSize, asked: client_plan.Looks, rate: float, memory: float | None
) -> None:
    """Says memory and hours of the frozen features."""
    batch = f"lower diffusion.features.batch ({conf.diffusion.features.batch})"
    made.needs("features", client_plan.looking_memory(conf, size), memory, lambda: batch)
    hours = client_plan.looking(conf, size, asked) / (UTILISATION * rate) / 3600
    drawn = f", {asked.drawn:,.0f} drawn" if asked.drawn else ""
    made.say("hours of features", f"{hours:.2g}", f"{asked.images:,.0f} images, {asked.rows:,.0f} rows{drawn}, once")


def _clients(conf: Settings, made: Plan, sizes: client_plan.Sizes, rate: float | None, memory: float | None) -> None:
    """Weights of the clients' models, memory and hours of their training, and bytes on the wire of each arm."""
    known = {name: size for (_, name), size in sizes.items() if size is not None}
    if known:
        told = ", ".join(f"{name} {size.weights / 1e6:.3g} M" for name, size in sorted(known.items()))
        made.say("clients' models", told, "weights")
    if unknown := sorted({name for (_, name), size in sizes.items() if size is None}):
        made.say("clients' models", ", ".join(unknown), "not on this machine: not counted")
    arms = {key: arm for key, arm in conf.arms().items() if arm.client is not None}
    whole = [bodies for m in conf.clients.mix if (bodies := client_plan.whole(m, sizes))]
    if arms and whole:
        key, arm = max(arms.items(), key=lambda item: getattr(item[1].client, "batch", 0))
        most = max(client_plan.memory(arm, bodies, conf.clients.precision) for bodies in whole)
        on_gpu = device_of(conf.clients.device).startswith("cuda") or conf.clients.device == "auto"
        batch = f"lower {arm.key}.client.batch ({getattr(arm.client, 'batch', 0)})"
        made.needs("a client", most, memory if on_gpu else None, lambda: batch)
    _hours(conf, made, sizes, rate)
    for key, arm in conf.arms().items():
        side = conf.diffusion.size or conf.data.image_size
        if (found := client_plan.sent(conf, arm, sizes, 0.5 * 3 * side**2)) is not None:  # a PNG halves an image
            bytes_, how = found
            made.say(f"bytes, {key}", f"{bytes_['up'] / MB:.2f} up, {bytes_['down'] / MB:.2f} down MB", how)


def _hours(conf: Settings, made: Plan, sizes: client_plan.Sizes, rate: float | None) -> None:
    """Says the hours of the clients' training, of all arms one after the other."""
    arms = [arm for arm in conf.arms().values() if arm.client is not None]
    if not arms:
        return
    device = device_of(conf.clients.device)
    fast = rate or measured_rate(device, conf.clients.precision)
    found = client_plan.rows_and_classes(conf)
    hours = [client_plan.training_hours(conf, arm, sizes, found[0], fast) if found else None for arm in arms]
    known = [each for each in hours if each is not None]
    if len(known) < len(hours):
        made.say("hours of clients' training", "unknown", "of a model or of the data nothing is on this machine")
        return
    place = "" if rate else f", on {device}"
    how = f"{len(arms)} arm(s), one client after the other{place}; a method's own extra passes are not counted"
    made.say("hours of clients' training", f"{sum(known):.2g}", how)


def moments_bytes(t: TuneSettings) -> int:
    """Bytes of Adam's two moments a trained weight."""
    return 2 if t.moments == "int8" else 8


def _disk(
    conf: Settings, made: Plan, size: DecoderSize | None, sizes: client_plan.Sizes, looks: client_plan.Looks | None
) -> None:
    """What the run directory and the hub's cache take. `size`: of a decoder that is tuned."""
    if size is not None:
        t = conf.tuning
        each = 8 + (0 if t.fresh_moments else moments_bytes(t))
        held = 2 * each * trained_weights(size, t) / GIB
        made.say("disk, checkpoints", f"{held:.1f} GiB", f"two kept, {each} bytes a trained weight each")
        saved = (size.weights + size.frozen) * 2 / GIB
        made.say("disk, the saved model", f"{saved:.1f} GiB", "and as much in the hub's cache")
    if looks is not None and looks.kept:
        kept = looks.kept * sum(conf.diffusion.features.dims) * 2 / GIB
        made.say("disk, features", f"{kept:.2g} GiB", f"{looks.kept:,.0f} rows of float16, shared by all arms")
    held = client_plan.kept(conf, sizes) / GIB
    if held:
        made.say("disk, models", f"{held:.2g} GiB", "checkpoints of averaged models; models that clients keep")
