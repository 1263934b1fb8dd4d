"""What a run will need: GPU memory, disk, hours and bytes, estimated from its settings before anything is fetched.

From weights and operations of the decoder (meta device), the clients' models where they are known, and the rate of
matrix products measured on this machine in seconds. An estimate: within a factor of two, activations least surely.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from florilegium import catalogue
from florilegium.assets import AssetError, located
from florilegium.config.diffusion import TuneSettings
from florilegium.config.settings import Settings
from florilegium.diffusion.generator import device_of
from florilegium.diffusion.sizes import DecoderSize, decoder_size

GIB, MB = 2**30, 2**20
UTILISATION = 0.33  # of the rate of large products that a decoder reaches (bare diffusers on an H100, bf16)
CLIENTS = {  # millions of weights of the papers' models, whose files a plan does not fetch
    "microsoft/resnet-18": 11.2,
    "google/vit-base-patch32-224-in21k": 87.5,
    "microsoft/beit-base-patch16-224": 85.8,
    "bert-base-uncased": 109.5,
    "distilbert-base-uncased": 66.4,
    "roberta-base": 124.6,
}


@dataclass
class Plan:
    """Lines of (what, value, how it was found), and what to lower where memory does not suffice."""

    lines: list[tuple[str, str, str]] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    def say(self, what: str, value: str, how: str) -> None:
        self.lines.append((what, value, how))


def plan(conf: Settings, rate: float | None = None, memory: float | None = None) -> Plan:
    """The plan of one run. `rate`: FLOP/s of large products, None: measured here; `memory`: bytes of the GPU, None:
    this machine's, if there is one. ValueError for a pipeline that no backend opens."""
    made = Plan()
    device = device_of(conf.diffusion.device)
    how = "as given" if rate else f"{device}, {conf.diffusion.dtype}, measured now"
    rate = rate or measured_rate(device, conf.diffusion.dtype)
    made.say("matrix products", f"{rate / 1e12:.3g} TFLOP/s", how)
    if memory is None and device.startswith("cuda"):
        memory = float(torch.cuda.get_device_properties(device).total_memory)
    uses = [arm for arm in conf.arms().values() if hasattr(arm.server, "t2i")]
    size = _decoder(conf, made) if uses else None
    hours = 0.0
    if size is not None:
        hours += _generator(conf, made, size, uses, rate, memory)
    _clients(conf, made)
    _disk(conf, made, size)
    if hours:
        made.say("hours of the generator", f"{hours:.2g}", "all arms and rounds; clients' training comes on top")
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
    held = 2 if s.dtype == "bfloat16" else 4
    passes = 2 if s.guidance > 1 and s.distilled is None else 1
    weights = (size.weights + size.frozen) * held
    drawn = 3 * s.batch * size.native**2 * 256 * held  # the widest layers of the VAE's decoder, three of them alive
    trained = size.weights if t.lora is None else 4 * t.lora * 1280 * 64
    own = (12 + moments_bytes(t)) * trained  # weight, average, gradient, moments
    own += 0 if t.lora is None else size.weights * held
    kept = 0.15 if t.checkpointing else 1.0
    tuned = size.frozen * held + own + kept * t.batch * size.flops / 800 * held / 2
    for what, bytes_ in (("synthesis", weights + drawn), ("tuning", tuned)):
        made.say(f"GPU memory, {what}", f"{bytes_ / GIB:.1f} GiB", "weights and activations")
        if memory is not None and bytes_ > 0.92 * memory:
            made.advice.append(f"{what} needs {bytes_ / GIB:.0f} GiB of {memory / GIB:.0f}: {lower(what, conf, t)}")
    hours = 0.0
    for arm in uses:
        samples = int(
            getattr(arm.server, "samples", 0) or getattr(getattr(arm.server, "public", None), "samples", 0) or 0
        )
        call = size.flops * samples * conf.rounds
        factor = 4 if arm.server.t2i.checkpointing else 3
        hours += call * (s.steps * passes + factor * arm.server.t2i.epochs) / (UTILISATION * rate) / 3600
    return hours


def lower(what: str, conf: Settings, t: Any) -> str:
    """Which setting to lower, the one that costs least first."""
    if what == "synthesis":
        if conf.diffusion.dtype == "float32":
            return "diffusion.dtype=bfloat16 halves it"
        return f"lower diffusion.batch ({conf.diffusion.batch})"
    if not t.checkpointing:
        return "tuning.checkpointing=true"
    if t.moments != "int8":
        return "tuning.moments=int8 holds Adam's moments in 8 bits"
    if t.lora is None:
        return "tuning.lora=16 trains adapters alone"
    return f"lower tuning.batch ({t.batch})"


def _clients(conf: Settings, made: Plan) -> None:
    """Weights of the clients' models, and bytes on the wire of each arm where a formula is known."""
    counts, unknown = {}, []
    for name in sorted({name for member in conf.clients.mix for name in member.model.split("+")}):
        given = conf.clients.architectures.get(name) or {}
        pretrained = str(given.get("pretrained") or "")
        if pretrained in CLIENTS:
            counts[name] = CLIENTS[pretrained]
        else:
            unknown.append(name)
    if counts:
        made.say("clients' models", ", ".join(f"{k} {v:.0f} M" for k, v in counts.items()), "weights")
        made.say(
            "GPU memory, a client", f"{16 * max(counts.values()) * 1e6 / GIB:.1f} GiB", "weights, gradients, AdamW"
        )
    if unknown:
        made.say("clients' models", ", ".join(unknown), "small, or not on this machine: not counted")
    for key, arm in conf.arms().items():
        if (formula := getattr(catalogue.side(arm.name, "server"), "planned_bytes", None)) is not None:
            side = conf.diffusion.size or conf.data.image_size
            found = formula(conf, arm.server, 0.5 * 3 * side**2)  # a PNG halves an image, about
            value = f"{found['up'] / MB:.2f} up, {found['down'] / MB:.2f} down MB"
            made.say(f"bytes, {key}", value, "a client and round, by the method's own formula")
        elif catalogue.entry(arm.name).one_architecture and counts:
            both = 2 * 4 * max(counts.values()) * 1e6
            made.say(f"bytes, {key}", f"{both / MB:.0f} MB", "a client and round, both ways: its weights")


def moments_bytes(t: TuneSettings) -> int:
    """Bytes of Adam's two moments a trained weight."""
    return 2 if t.moments == "int8" else 8


def _disk(conf: Settings, made: Plan, size: DecoderSize | None) -> None:
    """What the run directory and the hub's cache take."""
    if size is None:
        return
    t = conf.tuning
    trained = size.weights if t.lora is None else 4 * t.lora * 1280 * 64
    each = 8 + (0 if t.fresh_moments else moments_bytes(t))
    made.say(
        "disk, checkpoints", f"{2 * each * trained / GIB:.1f} GiB", f"two kept, {each} bytes a trained weight each"
    )
    made.say(
        "disk, the saved model", f"{(size.weights + size.frozen) * 2 / GIB:.1f} GiB", "and as much in the hub's cache"
    )
