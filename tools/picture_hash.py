"""Which pictures are nearly the same: a difference hash of 16 x 16 places (Krawetz 2013), of 32 x 32 pictures."""

import io

import numpy as np
from PIL import Image

NEAR = 6  # bits of 256 in which two pictures of one drawing may differ


def picture_hash(encoded: bytes) -> int:
    """256 bits: whether each place is darker than its right neighbour, in a 17 x 16 grey picture."""
    grey = Image.open(io.BytesIO(encoded)).convert("L").resize((17, 16), Image.Resampling.BILINEAR)
    values = np.asarray(grey, np.int16)
    return int.from_bytes(np.packbits(values[:, :-1] < values[:, 1:]).tobytes(), "big")


def bits(hashes: list[int]) -> np.ndarray:
    """N x 256 of 0 and 1."""
    raw = np.frombuffer(b"".join(h.to_bytes(32, "big") for h in hashes), np.uint8)
    return np.unpackbits(raw.reshape(len(hashes), 32), axis=1)


def near_pairs(left: list[int], right: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Positions (in left, in right) of all pairs that differ in at most NEAR bits."""
    if not left or not right:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    a, b = bits(left).astype(np.float32), bits(right).astype(np.float32)
    apart = a.sum(1)[:, None] + b.sum(1)[None] - 2 * a @ b.T  # N x M
    return np.nonzero(apart <= NEAR)
