"""One image of a site's own data: found, refused where it is torn or a bomb, made upright, RGB and of the data's size.

Axes: S image side.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from florilegium.protocol.pixels import FORMATS


class BadImage(ValueError):
    """An image cannot be used; `kind` is the finding's."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


def encoded(cell: Any, folder: Path) -> bytes:
    """The bytes of an image cell: bytes, a path below `folder`, or a dict of either. BadImage when there are none."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return cell
    if not cell:
        raise BadImage("missing image", "names no image")
    try:
        return (folder / str(cell)).read_bytes()
    except OSError as error:
        raise BadImage("missing image", f"image {cell} cannot be opened: {error.strerror}") from error


def decoded(data: bytes, side: int, most: int) -> tuple[np.ndarray, tuple[int, int]]:
    """uint8 [S, S, 3], upright by its EXIF and on white where it is transparent; and the width and height it had.

    The size is read from the header first, so a decompression bomb is refused unopened. Raises BadImage.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `most` decides, not Pillow's default
            image: Image.Image = Image.open(io.BytesIO(data), formats=tuple(name.upper() for name in FORMATS))
        width, height = image.size
        if width * height > most:
            raise BadImage(
                "image too large",
                f"is {width}x{height} pixels, more than {most} (max-pixels of the node configuration)",
            )
        image.load()
        upright = ImageOps.exif_transpose(image)
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage("image too large", str(error)) from error
    except Exception as error:  # each of Pillow's readers has errors of its own
        torn = "truncated" in str(error) or "Truncated" in str(error)
        said = "is no PNG, JPEG or WebP image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise BadImage("truncated image" if torn else "unreadable image", f"image cannot be read: {said}") from error
    if upright.has_transparency_data:
        seen = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    upright = upright.convert("RGB")
    if upright.size != (side, side):
        upright = upright.resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(upright), (width, height)
