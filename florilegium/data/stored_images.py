"""Decoded images of a large split: they lie in a file and are read by rows, in the place of a tensor in memory.

A split of 25,000 images of 224 pixels is 3.8 GB. Below `LARGEST` bytes images are a tensor, as everywhere.
Axes: N images, S side.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGEST = 1 << 28  # bytes of a split that are kept in memory


class StoredImages:
    """uint8 [N, 3, S, S] in a file. Rows are read with `images[rows]`, which gives a tensor; `pick` reads nothing.

    `seen_as` changes images as they are read, e.g. turns them.
    """

    dtype = torch.uint8

    def __init__(
        self, file: OpenFile, side: int, rows: Tensor, seen_as: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.file, self.side, self.rows, self.seen_as = file, side, rows, seen_as

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), 3, self.side, self.side))

    def __getitem__(self, which: Any) -> Tensor:
        """One image [3, S, S] for a number, else [n, 3, S, S]. IndexError."""
        chosen = self.rows[which]
        size = 3 * self.side * self.side
        found = torch.empty((chosen.numel(), 3, self.side, self.side), dtype=torch.uint8)
        for n, row in enumerate(chosen.reshape(-1).tolist()):
            self.file.read(found[n].numpy(), row * size)
        if self.seen_as is not None:
            found = self.seen_as(found)
        return found.reshape(*chosen.shape, 3, self.side, self.side)

    def split(self, size: int) -> Iterator[Tensor]:
        """Tensors of `size` images, as torch's split."""
        for first in range(0, len(self), size):
            yield self[first : first + size]

    def pick(self, which: Any) -> StoredImages:
        """Some of the images, none of them read."""
        return StoredImages(self.file, self.side, self.rows[which], self.seen_as)

    def through(self, change: Callable[[Tensor], Tensor]) -> StoredImages:
        """The same images, changed by `change` as they are read."""
        before = self.seen_as
        whole = change if before is None else lambda images: change(before(images))
        return StoredImages(self.file, self.side, self.rows, whole)


@dataclass(frozen=True)
class Changed:
    """Images [N, ...] in memory. `seen_as` changes the rows that are read, by `changed[rows]` or `changed.split(n)`."""

    images: Tensor
    seen_as: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which: Any) -> Tensor:
        """The rows of a slice or of numbers [n], [n, ...]. IndexError."""
        return self.seen_as(self.images[which])

    def split(self, size: int) -> Iterator[Tensor]:
        """Tensors of `size` rows, as torch's split."""
        return map(self.seen_as, self.images.split(size))


class OpenFile:
    """A file that is read at positions; it has no name any more, or it belongs to a run."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def read(self, into: np.ndarray, at: int) -> None:
        """Fill an array. OSError where the file ends before."""
        if os.preadv(self.descriptor, [into.data.cast("B")], at) != into.nbytes:
            raise OSError("the file of decoded images is shorter than its rows")

    def __del__(self) -> None:
        os.close(self.descriptor)


class Pictures:
    """A growing list of uint8 images [S, S, 3], in memory while they are few, in a file without a name when not.

    `limit` is in bytes; None: `LARGEST`. The file is in the directory of temporary files (TMPDIR).
    """

    def __init__(self, side: int, limit: int | None = None) -> None:
        self.side, self.limit = side, LARGEST if limit is None else limit
        self.few: list[Any] = []
        self.file: OpenFile | None = None

    def append(self, image: Any) -> None:
        """Add an image; None, or an object that is no image yet, takes a place of its own."""
        self.few.append(image)
        if self.file is None and len(self.few) * self.size > self.limit:
            self.file = temporary()
            for n, held in enumerate(self.few):
                self[n] = held
        elif self.file is not None:
            self[len(self.few) - 1] = image

    @property
    def size(self) -> int:
        return 3 * self.side * self.side

    def _write(self, at: int, image: np.ndarray) -> None:
        assert self.file is not None
        os.pwrite(self.file.descriptor, np.ascontiguousarray(image.transpose(2, 0, 1)).tobytes(), at * self.size)

    def __getitem__(self, n: int) -> Any:
        return self.few[n]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.few)

    def __setitem__(self, n: int, image: Any) -> None:
        if self.file is not None and isinstance(image, np.ndarray):
            self._write(n, image)
            image = None
        self.few[n] = image

    def images(self) -> Tensor | StoredImages:
        """All of them as uint8 [N, 3, S, S]."""
        if self.file is not None:
            return StoredImages(self.file, self.side, torch.arange(len(self.few)))
        if not self.few:
            return torch.zeros(0, 3, self.side, self.side, dtype=torch.uint8)
        return torch.from_numpy(np.stack(self.few)).permute(0, 3, 1, 2).contiguous()


def temporary() -> OpenFile:
    """An empty file that is gone when nobody reads it any more."""
    with tempfile.TemporaryFile() as file:
        return OpenFile(os.dup(file.fileno()))


def opened(path: str | Path, side: int, rows: Sequence[int]) -> StoredImages:
    """Rows of a file that `write` made. OSError."""
    return StoredImages(OpenFile(os.open(path, os.O_RDONLY)), side, torch.tensor(rows, dtype=torch.int64))


def write(path: str | Path, images: Iterable[Any]) -> None:
    """uint8 [3, S, S] images, one after the other."""
    with Path(path).open("wb") as stream:
        for image in images:
            stream.write(image.contiguous().numpy().tobytes())


def picked(images: Any, which: Any) -> Any:
    """Some of the images: of a tensor a tensor, of stored ones stored ones."""
    return images.pick(which) if isinstance(images, StoredImages) else images[which]


def changed(images: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The images after `change`, which their rows go through when they are read: all as floats are four times as much.

    For a tensor [N, ...] a `Changed`, for stored images stored ones. `change` must treat each row alone.
    """
    return images.through(change) if isinstance(images, StoredImages) else Changed(images, change)
