"""Images of rows, decoded in this process or by worker processes, always in the order of the rows.

Work goes out in small pieces and comes back in order, so a few pieces for each process are in memory, however many
rows there are.
"""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps

AT_ONCE = 16  # rows of a piece of work
AHEAD = 2  # pieces that each process may have in work or ready

Task = TypeVar("Task")
Done = TypeVar("Done")


class BadImage(ValueError):
    """An image cannot be decoded; the message is one line."""


def decoded(cell: Mapping[str, Any], side: int, crop: bool = False) -> np.ndarray:
    """uint8 [side, side, 3] of a cell {"bytes": ...} or {"path": ...}. BadImage.

    An image that is not square is squeezed, or with `crop` cut to its middle.
    """
    try:
        image = Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"]).convert("RGB")
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
        raise BadImage(f"the image cannot be read ({str(error).splitlines()[0]})") from error
    if image.size != (side, side):
        size, how = (side, side), Image.Resampling.LANCZOS
        image = ImageOps.fit(image, size, how) if crop else image.resize(size, how)
    return np.array(image)


def decoded_rows(encoded: Any, count: int, side: int, workers: int, crop: bool = False) -> Iterator[np.ndarray | str]:
    """The images of the first `count` rows of a data set with a column `image` that is not decoded.

    A row that cannot be decoded gives the reason in the place of an image, so that the caller can name the row.
    """

    def piece(first: int) -> list[np.ndarray | str]:
        found: list[np.ndarray | str] = []
        for cell in encoded[first : min(first + AT_ONCE, count)]["image"]:
            try:
                found.append(decoded(cell, side, crop))
            except BadImage as error:
                found.append(str(error))
        return found

    for part in in_order(piece, range(0, count, AT_ONCE), workers):
        yield from part


def in_order(work: Callable[[Task], Done], tasks: Iterable[Task], workers: int) -> Iterator[Done]:
    """`map(work, tasks)`, by `workers` processes that are forked from this one; 0: by this one.

    `work` must return its errors as values. What `tasks` raises is raised after the results before it, as `map` does.
    BrokenPipeError, one line, when a process is ended from outside.
    """
    if not workers or multiprocessing.current_process().daemon:  # such a process may have none of its own
        yield from map(work, tasks)
        return
    import torch
    from torch.utils.data import DataLoader

    raised: list[BaseException] = []
    loader: DataLoader = DataLoader(
        _Work(work),  # type: ignore[arg-type]
        sampler=_until_error(tasks, raised),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # without one, the loader would draw from the global one
        multiprocessing_context="fork",
    )
    results = iter(loader)
    while True:
        try:
            done = next(results)
        except StopIteration:
            break
        except RuntimeError as error:
            raise BrokenPipeError("a process of data.workers was ended from outside; lower data.workers") from error
        yield done
    if raised:
        raise raised[0]


class _Work:
    """The function as the indexed data set that a DataLoader wants; an index is a task."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work

    def __getitem__(self, task: Any) -> Any:
        return self.work(task)


def _as_it_is(done: Done) -> Done:
    """Results are sent through a pipe. As tensors they would need shared memory, of which a container has little."""
    return done


def _until_error(tasks: Iterable[Task], raised: list[BaseException]) -> Iterator[Task]:
    """The tasks, up to an error, which is kept for later: results of earlier tasks are still under way."""
    try:
        yield from tasks
    except Exception as error:
        raised.append(error)
