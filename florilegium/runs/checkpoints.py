"""Checkpoints, written by a thread while the next round goes on. One is written at a time, and each is whole or absent.

The tensors are copied before `save` returns, so the round may change them. The next `save`, or `wait`, waits for the
file before it and raises what went wrong with it.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from florilegium.runs import files

if TYPE_CHECKING:
    from torch import Tensor


class Checkpoints:
    """The checkpoints of one arm, `round-0007.safetensors` in `folder`; the `keep` newest stay.

    A context: at its end the last file is whole. Where the round failed, its error is raised, not that of the file.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.written: Future[None] | None = None

    def there(self) -> list[Path]:
        """All of them, the oldest first."""
        return oldest_first(self.folder)

    def save(self, r: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Begin to write round `r`. WriteError of the file before it."""
        self.wait()
        copied = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        self.written = self.thread.submit(self._write, self.folder / f"round-{r:04d}.safetensors", copied, meta)

    def wait(self) -> None:
        """Return when the last file is whole. WriteError."""
        written, self.written = self.written, None
        if written is not None:
            written.result()

    def _write(self, path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        files.save(path, tensors, meta)
        for old in self.there()[: -self.keep]:
            old.unlink()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.thread.shutdown()
        if kind is None:
            self.wait()


def oldest_first(folder: Path) -> list[Path]:
    """The checkpoints in `folder` by round, which is not the order of their names after round 9999."""
    return sorted(folder.glob("round-*.safetensors"), key=lambda path: int(path.stem.removeprefix("round-")))
