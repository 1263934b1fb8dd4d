"""Pictures of a run: grids of generated images as PNG, and small strips for the page. PIL and NumPy only.

Axes: N images, H height, W width; uint8 RGB, channels first as the generator gives them.
"""

import base64
import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, GAP, WIDEST = (255, 255, 255), (40, 40, 40), 6, 1200


def by_caption(captions: list[str]) -> dict[str, list[int]]:
    """Positions of each caption, in the order of first appearance."""
    places: dict[str, list[int]] = {}
    for n, caption in enumerate(captions):
        places.setdefault(caption, []).append(n)
    return places


def strip(images_N3HW: np.ndarray, gap: int = 1) -> Image.Image:
    """The images side by side, `gap` white pixels between them."""
    n, _, h, w = images_N3HW.shape
    sheet = Image.new("RGB", (n * (w + gap) - gap, h), PAPER)
    for i, image_3HW in enumerate(images_N3HW):
        sheet.paste(Image.fromarray(np.ascontiguousarray(image_3HW.transpose(1, 2, 0))), (i * (w + gap), 0))
    return sheet


def grid(images_N3HW: np.ndarray, captions: list[str], scale: int = 3) -> Image.Image:
    """One strip per caption, the caption under it, as many strips a line as fit; pixels enlarged `scale` times.

    Raises ValueError when the images are not uint8 [N,3,H,W] or the captions are not N.
    """
    check_arrays(images_N3HW, captions)
    strips = {c: strip(images_N3HW[at]) for c, at in by_caption(captions).items()}
    font, line = ImageFont.load_default(size=13), 18
    wide = max((s.width for s in strips.values()), default=1) * scale
    high = max((s.height for s in strips.values()), default=1) * scale + line
    columns = max(1, min(len(strips), (WIDEST + GAP) // (wide + GAP)))
    rows = -(-len(strips) // columns)
    sheet = Image.new("RGB", (columns * (wide + GAP) + GAP, max(rows, 1) * (high + GAP) + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for n, (caption, piece) in enumerate(strips.items()):
        x, y = GAP + n % columns * (wide + GAP), GAP + n // columns * (high + GAP)
        sheet.paste(piece.resize((piece.width * scale, piece.height * scale), Image.Resampling.NEAREST), (x, y))
        pen.text((x + 1, y + high - line + 1), shortened(caption, font, wide), fill=INK, font=font)
    return sheet


def check_arrays(images_N3HW: np.ndarray, captions: list[str]) -> None:
    """ValueError, in one line, unless the images are uint8 [N,3,H,W] with one caption each."""
    if images_N3HW.ndim != 4 or images_N3HW.shape[1] != 3 or images_N3HW.dtype != np.uint8:
        raise ValueError(f"a grid wants uint8 [N,3,H,W], got {images_N3HW.dtype} {list(images_N3HW.shape)}")
    if len(captions) != len(images_N3HW):
        raise ValueError(f"a grid of {len(images_N3HW)} images wants as many captions, got {len(captions)}")


def shortened(text: str, font, width: int) -> str:
    """`text`, cut to `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def data_uri(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode("ascii")


def raw(images_N3HW: np.ndarray, captions: list[str]) -> bytes:
    """The images and captions as .npz bytes, without pickle."""
    stream = io.BytesIO()
    np.savez_compressed(stream, images=images_N3HW, captions=np.asarray(captions, dtype=np.str_))
    return stream.getvalue()


def read_raw(path) -> tuple[np.ndarray, list[str]]:
    """Images uint8 [N,3,H,W] and captions of a file written from `raw`."""
    with np.load(path, allow_pickle=False) as held:
        return held["images"], [str(c) for c in held["captions"]]
