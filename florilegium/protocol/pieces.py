"""Byte strings of several lengths as two arrays, all bytes and the lengths: on the wire, and in a client's memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class PiecesError(ValueError):
    """Bytes and lengths do not belong together; one line."""


def pack(pieces: Sequence[bytes | str]) -> tuple[np.ndarray, np.ndarray]:
    """Byte strings, or texts as UTF-8 -> (uint8 [sum of lengths], int64 [pieces])."""
    encoded = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]
    return np.frombuffer(b"".join(encoded), np.uint8), np.array([len(piece) for piece in encoded], np.int64)


def unpack(data: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """Undo `pack`. PiecesError where types, dimensions or sums are wrong."""
    if data.dtype != np.uint8 or lengths.dtype != np.int64 or data.ndim != 1 or lengths.ndim != 1:
        raise PiecesError("should be bytes and their lengths")
    # each length is checked by itself: a sum of 64-bit numbers may come out right where they are not
    if (lengths < 0).any() or (lengths > data.size).any() or lengths.sum() != data.size:
        raise PiecesError(f"has lengths that do not add up to its {data.size} bytes")
    ends = np.cumsum(lengths)
    return [data[end - n : end].tobytes() for end, n in zip(ends, lengths, strict=True)]
