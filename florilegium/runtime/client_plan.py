"""What clients of a run will need: hours of training and of looking with a frozen decoder, memory, disk, bytes.

From operations of their models, rows, epochs and rounds. What guidance asks its own settings say (`planned`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from florilegium import catalogue
from florilegium.config.settings import Arm, Settings
from florilegium.data.datasets import open_dataset
from florilegium.diffusion.sizes import DecoderSize
from florilegium.models.build import parts_of
from florilegium.models.sizes import BodySize, body_size

CLIENT_UTILISATION = 0.1  # of the rate of large products; small nets and batches reach less than a decoder does
STEP = 0.004  # seconds that a step of a small net takes at least: it waits for its batch and for kernels to start
KEPT = 4  # versions of a client's model on its disk (client_app/memory.py: this round's and those of three before)
OF_ACTIVATIONS = 200  # operations of a forward pass for each byte that the backward pass keeps
SETS = {  # training rows and classes of data sets that a plan does not fetch; a caption is a row
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "tiny_imagenet": (100_000, 200),
    "food101": (75_750, 101),
    "flowers102": (6_149, 102),
    "office": (12_500, 65),
    "digits_domains": (140_000, 10),
    "ag_news": (120_000, 4),
    "coco": (591_753, 1),
    "flickr30k": (145_000, 1),
}
CAPTIONS = {"flowers102": 10}  # of a picture, in the authors' layout alone


Sizes = dict[tuple[str, str], BodySize | None]  # by (modality, name)


@dataclass(frozen=True)
class Looks:
    """What a frozen decoder does in a run: images it encodes and rows (image, prompt) it sees, of clients and of the
    server; `kept` rows on disk; images that are drawn to be looked at."""

    images: float
    rows: float
    kept: float
    drawn: float


def rows_and_classes(conf: Settings) -> tuple[int, int] | None:
    """The clients' training rows and the classes; None where the data would have to be fetched or are not prepared."""
    data = conf.data
    if data.name in SETS and (data.hub or data.hub_domains or data.path):
        rows, classes = SETS[data.name]
        several = 1 if data.hub else CAPTIONS.get(data.name, 1)
        return int(several * rows * (1 - data.public.share)), classes
    if data.name != "toy" and (data.hub or data.hub_domains or data.own or data.path):
        return None
    splits = open_dataset(data)
    return len(splits.private("train")), len(splits.classes)


def sizes_of(conf: Settings) -> Sizes:
    """Of each body of the clients, by (modality, name)."""
    found: Sizes = {}
    for member in conf.clients.mix:
        for key in parts_of(member.modality, member.model):
            if key not in found:
                found[key] = body_size(conf.clients, *key, conf.data.image_size)
    return found


def whole(member: Any, sizes: Sizes) -> list[BodySize]:
    """The sizes of a client's bodies; none where one of them is not known."""
    parts = parts_of(member.modality, member.model)
    found = [size for key in parts if (size := sizes[key]) is not None]
    return found if len(found) == len(parts) else []


def training(conf: Settings, arm: Arm, sizes: list[BodySize], rows: float, rate: float) -> float:
    """Seconds of all rounds of one client with these bodies and so many rows of its own, at `rate` FLOP/s.

    A step takes `STEP` seconds at least. Counted are the private epochs, and the passes over samples of the server.
    What a method adds to them is not.
    """
    s, asked = arm.client, conf.rounds * conf.cohort.fraction
    local = getattr(s, "local_epochs", 1)
    passes = asked * local + max(getattr(s, "pretrain_epochs", local) - local, 0)
    samples = getattr(arm.server, "samples", 0) or getattr(getattr(arm.server, "public", None), "samples", 0) or 0
    taught = asked * samples * getattr(s, "distill_epochs", 0)
    batch = getattr(s, "batch", 32)
    each = batch * sum(size.passes * size.flops for size in sizes) / (CLIENT_UTILISATION * rate)
    return (passes * rows + taught) / batch * max(each, STEP)


def training_hours(conf: Settings, arm: Arm, sizes: Sizes, rows: int, rate: float) -> float | None:
    """Hours of all clients of one arm, which share `rows`, one after the other, at `rate` FLOP/s of large products;
    None where a model is not known."""
    total = 0.0
    for member in conf.clients.mix:
        if not (bodies := whole(member, sizes)):
            return None
        total += training(conf, arm, bodies, rows / len(conf.clients.mix), rate)
    return total / 3600


def memory(arm: Arm, sizes: list[BodySize], precision: str) -> float:
    """Bytes that a client's training holds: weights, gradients, AdamW, and the activations of a batch."""
    held = sum(4 * size.weights + 12 * size.trained for size in sizes)
    half = 0.5 if precision == "bfloat16" else 1.0
    kept = sum(size.flops / OF_ACTIVATIONS for size in sizes if size.passes > 1)
    return held + half * getattr(arm.client, "batch", 32) * kept


def looks(conf: Settings) -> Looks | None:
    """What all guided arms ask of the frozen decoder; arms with the same guide share what it sees. None without one, or
    where the rows are not known."""
    guided = [arm.client.guidance for arm in conf.arms().values() if getattr(arm.client, "guidance", None) is not None]
    found = rows_and_classes(conf)
    asked = {g.planned(found[1], conf.rounds) for g in guided} - {None} if found else set()
    if found is None or not asked:
        return None
    most = max(asked, key=lambda x: x.own)
    draws = conf.diffusion.features.ensemble
    images = most.looked * found[0] + most.server
    rows = draws * (most.own * found[0] + most.shown * most.server)
    return Looks(images, rows, most.kept * found[0], most.drawn)


def looking(conf: Settings, size: DecoderSize, asked: Looks) -> float:
    """Operations: an image through the VAE once, each row through the decoder, and the images that are drawn.

    The decoder ends after the last block that is wanted; here it runs whole, so this is an upper bound.
    """
    s = conf.diffusion
    share = ((s.features.size or size.native) / size.native) ** 2
    calls = s.steps * (2 if s.guidance > 1 and s.distilled is None else 1)
    return share * (asked.images * size.encoding + asked.rows * size.flops) + asked.drawn * calls * size.flops


def looking_memory(conf: Settings, size: DecoderSize) -> float:
    """Bytes of the frozen decoder and its VAE with the activations of one batch."""
    s, held = conf.diffusion, 2 if conf.diffusion.dtype == "bfloat16" else 4
    side = s.features.size or size.native
    return held * (size.weights + size.frozen + 3 * s.features.batch * side**2 * 128)


def sent(conf: Settings, arm: Arm, sizes: Sizes, image_bytes: float) -> tuple[dict[str, float], str] | None:
    """({up, down} bytes of a client and round, how it was found): by the method's own formula, or the whole weights
    where a method averages models; None where neither is known."""
    if (formula := getattr(catalogue.side(arm.name, "server"), "planned_bytes", None)) is not None:
        return formula(conf, arm.server, image_bytes), "a client and round, by the method's own formula"
    if not catalogue.entry(arm.name).one_architecture:
        return None
    each = [sum(size.trained for size in whole(m, sizes)) for m in conf.clients.mix]
    most = 4 * max(each, default=0)
    return ({"up": most, "down": most}, "a client and round: the weights that train") if most else None


def kept(conf: Settings, sizes: Sizes) -> float:
    """Bytes of models on disk: two checkpoints of a model that is averaged, else the versions that clients keep."""
    total = 0.0
    each = [4 * sum(size.trained for size in whole(m, sizes)) for m in conf.clients.mix]
    for arm in conf.arms().values():
        if arm.client is not None:
            averaged = catalogue.entry(arm.name).one_architecture
            total += 2 * max(each, default=0.0) if averaged else KEPT * sum(each)
    return total
