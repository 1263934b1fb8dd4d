"""Small inputs as people have them: pictures and tables written into a folder of a test."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from florilegium.data.own.examination import Examined, examine
from florilegium.data.own.sources import OwnSettings

CLASSES = ("fruit", "aircraft", "mammal")
SIDE = 8


def pixels(seed, side=12):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def picture(seed, form="PNG", side=12, **how):
    """An encoded picture of noise; another seed is another picture."""
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed, side)).save(buffer, form, **how)
    return buffer.getvalue()


def put(place: Path, content) -> Path:
    """Write bytes, text, a list of rows (one JSON object a line) or a picture's seed into a file."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, int):
        content = picture(content)
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    return place


def two_classes(place: Path, *below, seed=0) -> Path:
    """Two pictures of fruit, two of aircraft."""
    for k, name in enumerate(("fruit", "aircraft")):
        for n in range(2):
            put(place.joinpath(*below, name, f"{n}.png"), seed + 10 * k + n)
    return place


def look(path, modality="image", classes=CLASSES, split="train", **how) -> Examined:
    return examine(OwnSettings(str(path), **how), classes, modality, SIDE, split)


def labels(found: Examined) -> list[str]:
    """The classes of the rows of an examination that refused nothing."""
    return [CLASSES[label] for label in found.whole().labels.tolist()]


def refused(found: Examined) -> list[tuple[str, str]]:
    """(kind, last part of the place) of what is refused; each line is short and is one line."""
    for finding in found.findings:
        assert len(str(finding)) <= 300 and "\n" not in str(finding)
    return [(finding.kind, finding.where.rpartition("/")[2]) for finding in found.refused]


def warned(found: Examined) -> set[str]:
    """Kinds of warnings, without the one about classes that have no row."""
    return {finding.kind for finding in found.findings if not finding.refused} - {"class without rows", "small image"}
