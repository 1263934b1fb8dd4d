"""CPU threads of the server's computations, and computations that are done side by side.

The threads of one operation wait for each other at its end. For a small net that costs more than it gains, so batches
side by side, each on a thread of its own, are done sooner. What a batch gives does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TypeVar

import torch

Tool = TypeVar("Tool")
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Within, operations of this thread take `threads` CPU threads; None: as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def room(threads: int | None) -> int:
    """How many computations of `threads` CPU threads each this process has room for; None: one, on all of them."""
    return max(1, torch.get_num_threads() // threads) if threads else 1


def side_by_side(
    work: Callable[[Tool, Item], Result], tools: Sequence[Tool], items: Iterable[Item], threads: int | None
) -> Iterator[Result]:
    """`work(tool, item)` of each item, in their order; a tool works on one item at a time, on `threads` CPU threads.

    One tool works in the calling thread. An error of `work` is raised here, and no further item is begun.
    """
    if len(tools) == 1:
        with limited(threads):
            yield from (work(tools[0], item) for item in items)
        return
    free: SimpleQueue[Tool] = SimpleQueue()
    for tool in tools:
        free.put(tool)

    def done(item: Item) -> Result:
        tool = free.get()
        try:
            return work(tool, item)
        finally:
            free.put(tool)

    with limited(threads):  # part of what a thread of the pool sets holds for the whole process
        pool = ThreadPoolExecutor(len(tools), initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))
        try:
            yield from pool.map(done, items)
        finally:
            pool.shutdown(cancel_futures=True)
