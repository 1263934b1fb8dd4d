"""Images on the wire: 8-bit RGB tensors to encoded bytes and back.

Lossless PNG is the default, so a client sees exactly what the server synthesized.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

FORMATS: dict[str, dict[str, Any]] = {"png": {"optimize": False}, "webp": {"lossless": True}, "jpeg": {"quality": 90}}
# with a quality; both options only make files smaller
LOSSY: dict[str, dict[str, Any]] = {"webp": {"method": 6}, "jpeg": {"optimize": True}}
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # its last chunk: no bytes, its name, its checksum
MAX_PIXELS = 1 << 30  # of all images of one message together
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    IndexError,
    KeyError,
    EOFError,
    struct.error,
    zlib.error,
    OverflowError,
    MemoryError,
    Image.DecompressionBombError,
)  # what Pillow raises over broken bytes


def scaled(images_NCHW: Tensor) -> Tensor:
    """uint8 -> float in [-1, 1], as models and diffusion pipelines read images."""
    return images_NCHW.float() / 127.5 - 1


def resized(images_N3SS: Tensor, side: int) -> Tensor:
    """Resize uint8 images to side x side if they have another size."""
    if not len(images_N3SS) or images_N3SS.shape[-2:] == (side, side):
        return images_N3SS
    other = interpolate(images_N3SS.float(), size=(side, side), mode="bilinear", antialias=True)
    return other.round().to(torch.uint8)


def encode(images_NCHW: Tensor, image_format: str = "png", quality: int | None = None) -> tuple[bytes, ...]:
    """uint8 [N, 3, H, W] -> N encoded images. `quality` from 1 to 100 lets WebP lose detail, and JPEG less or more.

    ValueError for an unknown format, and for a quality of PNG.
    """
    if image_format not in FORMATS:
        raise ValueError(f"image_format {image_format!r} is none of {', '.join(FORMATS)}")
    if quality is not None and image_format not in LOSSY:
        raise ValueError(f"{image_format} loses nothing, so it has no quality")
    how = FORMATS[image_format] if quality is None else {"quality": quality, **LOSSY[image_format]}
    encoded = []
    for image_CHW in images_NCHW:
        buffer = io.BytesIO()
        pixels = np.ascontiguousarray(image_CHW.permute(1, 2, 0).numpy())
        Image.fromarray(pixels).save(buffer, image_format.upper(), **how)
        encoded.append(buffer.getvalue())
    return tuple(encoded)


class Images(tuple[bytes, ...]):
    """Encoded images that were decoded when they arrived: `decoded` is uint8 [N, 3, H, W], None for several sizes."""

    decoded: Tensor | None = None


def check_images(images: Sequence[bytes], max_side: int = 1024) -> Images:
    """The images with their pixels, so that nobody decodes them again.

    ValueError, naming the row, unless every image is whole; all headers are read before any pixel is decoded.
    """
    opened = [_opened(row, data, max_side) for row, data in enumerate(images)]
    if (total := sum(image.width * image.height for image in opened)) > MAX_PIXELS:
        raise ValueError(f"have {total} pixels together, more than {MAX_PIXELS}")
    keep = len({image.size for image in opened}) == 1
    arrays: list[np.ndarray] = []
    for row, (image, data) in enumerate(zip(opened, images, strict=True)):
        if image.format == "PNG" and not data.endswith(PNG_END):  # Pillow forgives a cut behind the last pixel
            raise ValueError(f"image {row}: does not end as a PNG does")
        rgb = _loaded(row, image)
        if keep:
            arrays.append(np.asarray(rgb))
        image.close()
    found = Images(images)
    found.decoded = _stacked(arrays) if keep else None
    return found


def _opened(row: int, data: bytes, max_side: int) -> Image.Image:
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=tuple(name.upper() for name in FORMATS))
        if max(image.size) > max_side:
            raise ValueError(f"is {image.size[0]}x{image.size[1]}, more than {max_side} on a side")
    except UNREADABLE as error:
        raise ValueError(f"image {row}: {error}") from error
    return image


def _loaded(row: int, image: Image.Image) -> Image.Image:
    try:
        image.load()
        return image.convert("RGB")
    except UNREADABLE as error:
        raise ValueError(f"image {row}: {error}") from error


def decode(images: Iterable[bytes], max_side: int = 1024) -> Tensor:
    """Encoded images of one size -> uint8 [N, 3, H, W].

    The size is read from the header before a pixel is decoded, so a decompression bomb is refused unopened.
    Raises ValueError naming the row of an image that cannot be read, is too large or differs in size.
    """
    if isinstance(images, Images) and images.decoded is not None:
        return images.decoded
    arrays: list[np.ndarray] = []
    for row, data in enumerate(images):
        array = np.asarray(_loaded(row, _opened(row, data, max_side)))
        if arrays and array.shape != arrays[0].shape:
            raise ValueError(f"image {row}: size {array.shape[:2]} differs from {arrays[0].shape[:2]}")
        arrays.append(array)
    return _stacked(arrays) if arrays else torch.zeros(0, 3, 1, 1, dtype=torch.uint8)


def _stacked(arrays: Sequence[np.ndarray]) -> Tensor:
    """uint8 [H, W, 3] each -> [N, 3, H, W]."""
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
