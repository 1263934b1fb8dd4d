"""One image of own data: found, refused where it is torn or a bomb, made upright, RGB and of the data's size.

Axes: S image side.
"""

from __future__ import annotations

import io
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from florilegium.config.errors import first_line
from florilegium.data.own.cells import described
from florilegium.data.own.findings import BadCell, quoted

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF")
KINDS = "PNG, JPEG, WebP, BMP, GIF or TIFF"
LARGEST_FILE = 1 << 28  # bytes of one encoded image
MANY_PIXELS = 1 << 22  # an image of more is made smaller before its colours are converted, which copies it
HEAVY = {"WEBP": 4}  # decoding a pixel takes so many times the memory that it takes in other formats
LONGEST_SIDE = 1 << 16  # pixels
DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras and scanners use of the 16 that a file has


@dataclass(frozen=True)
class Deep:
    """A grey image of more than 8 bits a pixel: float32 [S, S], and the lowest and highest value it was read with."""

    values: np.ndarray
    low: float
    high: float


@dataclass(frozen=True)
class Photo:
    """An image as it is used, uint8 [S, S, 3] or Deep, the width and height it was found with, and (kind, what) of
    each warning."""

    pixels: np.ndarray | Deep
    size: tuple[int, int]
    warnings: tuple[tuple[str, str], ...] = ()


# -- the file ----------------------------------------------------------------------------------------------------------


def encoded(cell: Any, folder: Path) -> bytes:
    """The bytes of an image cell: bytes, a path from `folder` on, or a dict of either. BadCell when there are none."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, (bytes, bytearray, memoryview)):
        return bytes(cell)
    if cell is None or cell == "" or (isinstance(cell, float) and cell != cell):
        raise BadCell("missing image", "names no image")
    if not isinstance(cell, (str, Path)):
        raise BadCell("missing image", f"the image is {described(cell)}; a path or an encoded image is read")
    if re.match(r"(https?|s3|gs|hdfs)://|data:", str(cell)):
        raise BadCell("missing image", f"the image is an address ({quoted(cell, 40)}); only files are read")
    return _file(cell, folder)


def _file(cell: str | Path, folder: Path) -> bytes:
    if len(str(cell)) > 4096:
        raise BadCell("missing image", f"the image is a text of {len(str(cell))} characters, no path to a file")
    try:
        place = next((path for path in _spellings(str(cell), folder) if path.exists()), folder / str(cell))
        found = place.stat()
        if not stat.S_ISREG(found.st_mode):
            raise BadCell("missing image", f"image {quoted(cell)} is no file")
        if found.st_size > LARGEST_FILE:
            raise BadCell("image too large", f"is a file of {found.st_size} bytes, more than {LARGEST_FILE}")
        return place.read_bytes()
    except OSError as error:
        raise BadCell("missing image", f"image {quoted(cell)} cannot be opened: {error.strerror}") from error
    except ValueError as error:  # a NUL or half of a character in the path
        raise BadCell("missing image", f"image {quoted(cell)} cannot be opened: no path") from error


def _spellings(cell: str, folder: Path) -> list[Path]:
    """The path as it is, without blanks around it, and as a Windows program writes it."""
    return [folder / cell, folder / cell.strip(), folder / cell.strip().replace("\\", "/")]


# -- the picture -------------------------------------------------------------------------------------------------------


def decoded(data: bytes, side: int, most: int) -> Photo:
    """An encoded image, upright by its EXIF and on white where it is transparent, of side x side pixels.

    The size is read from the header first, so a decompression bomb is refused unopened. Raises BadCell.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `most` decides, not Pillow's default; what it says of tags is no news
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > (limit := most // HEAVY.get(str(image.format), 1)):
                whose = f" of a {image.format}" if limit < most else ""
                what = f"is {width}x{height} pixels, more than the {limit}{whose} that max-pixels allows"
                raise BadCell("image too large", what)
            if max(width, height) > LONGEST_SIDE:
                raise BadCell("image too large", f"is {width}x{height} pixels; no side over {LONGEST_SIDE} is read")
            said = _frames(data)
            image.draft("RGB", (2 * side, 2 * side))  # a JPEG only; other formats do nothing
            image.load()
            deep = _deep(image, side)
            if deep is not None:
                return Photo(deep, (width, height), said)
            pixels = np.asarray(_rgb(_upright(_smaller(image, side)), side))
    except BadCell:
        raise
    except Image.DecompressionBombError as error:
        raise BadCell("image too large", "has more pixels than can be read") from error
    except MemoryError as error:
        raise BadCell("image too large", "does not fit into memory") from error
    except Exception as error:  # each of Pillow's readers has errors of its own
        raise _unreadable(error) from error
    return Photo(pixels, (width, height), (*said, *_bits(data)))


def _unreadable(error: Exception) -> BadCell:
    if "truncated" in str(error).lower():
        return BadCell("truncated image", "image cannot be read: the file ends too early")
    if isinstance(error, Image.UnidentifiedImageError):
        return BadCell("unreadable image", f"image cannot be read: it is no {KINDS} image")
    line = first_line(error)
    return BadCell("unreadable image", f"image cannot be read: {line[:80]}")


def _frames(data: bytes) -> tuple[tuple[str, str], ...]:
    """A warning for a moving picture and for a file of several pages. A second view of a phone's JPEG is none."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            several = image.format not in ("JPEG", "MPO") and bool(getattr(image, "is_animated", False))
    except Exception:  # a later frame is broken; the first is what is used
        several = True
    return (("several frames", "has several frames or pages; the first is read"),) if several else ()


def _smaller(image: Image.Image, side: int) -> Image.Image:
    """A large image made smaller by whole factors, not below twice the side; another is left as it is."""
    if (factor := _factor(image, side)) == (1, 1):
        return image
    first, small = True, image
    for top, stripe in _stripes(image, factor):
        if stripe.mode in ("P", "PA"):
            stripe = stripe.convert("RGBA" if image.has_transparency_data else "RGB")
        elif stripe.mode == "1":
            stripe = stripe.convert("L")
        kept = stripe.info.get("transparency")
        part = stripe.reduce(factor)
        if first:
            small, first = Image.new(part.mode, (part.width, -(-image.height // factor[1]))), False
            small.info = dict(part.info)
            if kept is not None and "transparency" not in small.info and small.mode in ("L", "RGB"):
                small.info["transparency"] = kept
        small.paste(part, (0, top // factor[1]))
    return small


def _factor(image: Image.Image, side: int) -> tuple[int, int]:
    """By how much a large image is made smaller before anything copies it, across and down; (1, 1): it is not."""
    if image.width * image.height <= MANY_PIXELS:
        return 1, 1
    return max(image.width // (2 * side), 1), max(image.height // (2 * side), 1)


def _stripes(image: Image.Image, factor: tuple[int, int]) -> Iterator[tuple[int, Image.Image]]:
    """(its first row, a stripe over the whole width), of rows that `factor` divides but for the last."""
    rows = factor[1] * max(MANY_PIXELS // 4 // (factor[1] * image.width), 1)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF data that are broken turn nothing; the pixels are whole
        return image


def _rgb(image: Image.Image, side: int) -> Image.Image:
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    if image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    image = image.convert("RGB")
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.LANCZOS)


# -- more than 8 bits --------------------------------------------------------------------------------------------------


def _deep(image: Image.Image, side: int) -> Deep | None:
    """The values of an image whose pixels are one number of 16 or 32 bits; None for every other."""
    if not image.mode.startswith("I") and image.mode != "F":
        return None
    values, low, high = _values(image, _factor(image, side))
    if getattr(image, "tag_v2", {}).get(262) == 0:  # TIFF: 0 is white
        white = high if low < 0 or image.mode == "F" else 2.0 ** _bits_of(high) - 1
        values, low, high = white - values, white - high, max(high, white - low)
    upright = _upright_values(values, image)
    small = Image.fromarray(upright)
    if small.size != (side, side):
        small = small.resize((side, side), Image.Resampling.LANCZOS)
    return Deep(np.asarray(small).clip(low, high), low, high)


def _values(image: Image.Image, factor: tuple[int, int]) -> tuple[np.ndarray, float, float]:
    """The pixels as float32, made smaller by `factor`, and the lowest and highest of them all. BadCell."""
    parts, low, high = [], float("inf"), float("-inf")
    for _, stripe in _stripes(image, factor):
        found = np.asarray(stripe, dtype=np.float32)
        if not np.isfinite(found).all():
            raise BadCell("unreadable image", "image cannot be read: it has pixels that are no numbers")
        low, high = min(low, float(found.min())), max(high, float(found.max()))
        parts.append(np.asarray(Image.fromarray(found).reduce(factor)) if factor != (1, 1) else found)
    return np.concatenate(parts), low, high


def _upright_values(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """Turned by the EXIF orientation, as ImageOps.exif_transpose does; a TIFF has been turned when it was loaded."""
    try:
        way = 1 if image.format == "TIFF" else image.getexif().get(0x0112, 1)
    except Exception:  # EXIF data that are broken turn nothing
        return values
    turns = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
    quarter, mirrored = turns.get(way, (0, False))
    turned = np.rot90(values, quarter)
    return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)


def _bits_of(high: float) -> int:
    """How many bits a highest value needs, of those that devices have."""
    needed = int(high).bit_length()
    return next((depth for depth in DEPTHS if needed <= depth), 32)


def scaled(photos: Sequence[Deep]) -> tuple[list[np.ndarray], str]:
    """The deep images of one data set as uint8 [S, S, 3], all by the same scale, and what was done, in words.

    Whole numbers from 0 on are divided by the highest that fits into the bits in use: 12-bit images in 16-bit files
    would be black otherwise. Fractions of 1 are multiplied. All else goes from its lowest to its highest value.
    """
    low, high = min(photo.low for photo in photos), max(photo.high for photo in photos)
    fractions = low >= 0 and high <= 1 and any(photo.values.max() % 1 for photo in photos)
    if fractions:
        base, span, what = 0.0, 1.0, "has pixels from 0 to 1"
    elif low < 0 or _bits_of(high) == 32:
        base, span, what = low, max(high - low, 1e-12), f"has pixels from {low:g} to {high:g}"
    else:
        base, span = 0.0, 2.0 ** _bits_of(high) - 1
        what = f"has 16 bits a pixel, of which these data use {_bits_of(high)}"
    found = [((photo.values - base) * (255 / span)).round().clip(0, 255).astype(np.uint8) for photo in photos]
    return [np.repeat(grey[..., None], 3, axis=2) for grey in found], f"{what}; it is scaled to 8 bits"


def _bits(data: bytes) -> tuple[tuple[str, str], ...]:
    """A warning for a PNG of 16 bits a colour, of which Pillow keeps the upper 8."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 25 and data[24] == 16:
        return (("deep image", "has 16 bits a colour; the upper 8 are read"),)
    return ()
