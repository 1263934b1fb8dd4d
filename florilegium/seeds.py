"""Everything random is drawn from a named seed, never from global state.

A name such as ``(seed, "cohort", round)`` always gives the same numbers, whatever was drawn before; so a resumed run
equals an uninterrupted one and two methods meet the same cohorts, prompts and noise.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_of(*names: object) -> int:
    """A 63-bit seed for a sequence of names (SHA-256 of their text; stable across processes and machines)."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*names: object) -> torch.Generator:
    """A CPU generator of its own for these names."""
    import torch  # here: the launcher shuffles without it

    return torch.Generator().manual_seed(seed_of(*names))


def shuffled(count: int, *names: object) -> list[int]:
    """0 ... count - 1 in the random order of these names; torch-free."""
    return random.Random(seed_of(*names)).sample(range(count), count)


@contextlib.contextmanager
def scoped(*names: object) -> Iterator[None]:
    """Seed the global generators for library code that knows no other (dropout, weight init), then put them back."""
    import numpy as np
    import torch

    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        seed = seed_of(*names)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)
