"""What a client stores between messages, on its own disk.

A memory has parts: the model, the stored samples, the replay, and others. Each write makes a version with the round
and the step of its message. A message reads the newest version before its own. So a message that is sent again, or a
run that resumes at a round, reads exactly what it read the first time.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from florilegium.runs import files

VERSION = re.compile(r"(?P<part>[a-z]+)-(?P<round>\d+)-(?P<step>\d+)\.safetensors")
LEFT = 3600.0  # seconds after which a half written file is a killed process's
ALL_ARMS = "all-arms"  # beside the arms' folders
KEPT_ROUNDS = 3  # earlier rounds whose last versions stay, so that a resumed run can go back to them: the newest
# checkpoint may still be in the making, and the one before it torn


class Memory:
    """The memory of one client in one arm of a run, for one message (round, step)."""

    def __init__(self, folder: Path | str, round_: int, step: int) -> None:
        self.folder, self.now = Path(folder), (round_, step)

    @property
    def of_all_arms(self) -> Memory:
        """What this client keeps for all arms of the run."""
        return Memory(self.folder.parent.with_name(ALL_ARMS) / self.folder.name, *self.now)

    def versions(self, part: str | None = None) -> list[tuple[str, tuple[int, int], Path]]:
        """(part, (round, step), path) of all versions, oldest first."""
        found = []
        for path in self.folder.glob("*.safetensors"):
            match = VERSION.fullmatch(path.name)
            if match and part in (None, match["part"]):
                found.append((match["part"], (int(match["round"]), int(match["step"])), path))
        return sorted(found)

    def begin(self) -> None:
        """Remove the versions of this message and of later ones: this part of the run is done again."""
        files.sweep(self.folder, LEFT)
        for _, when, path in self.versions():
            if when >= self.now:
                path.unlink()

    def read(self, part: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest version of `part` before this message: (tensors, meta), or None."""
        earlier = [path for _, when, path in self.versions(part) if when < self.now]
        if not earlier:
            return None
        try:
            return files.load(earlier[-1])
        except Exception as error:  # safetensors has its own error classes
            raise ValueError(f"{earlier[-1]} cannot be read: {str(error).splitlines()[0]}") from error

    def write(self, part: str, tensors: dict[str, Tensor], meta: dict[str, Any] | None = None) -> None:
        """Write this message's version of `part`, then remove the versions that no resume can need."""
        r, step = self.now
        files.save(self.folder / f"{part}-{r:06d}-{step:04d}.safetensors", tensors, meta)
        self._tidy(part)

    def keep(self, name: str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Store something that is valid for every round and has its own version; it replaces the previous one."""
        files.save(self.folder / f"{name}.safetensors", tensors, meta)

    def kept(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `keep` wrote: (tensors, meta), or None.

        An incomplete file counts as None, because it can be made again.
        """
        try:
            return files.load(self.folder / f"{name}.safetensors")
        except Exception:  # not there, or torn: safetensors has its own error classes
            return None

    def keeps(self, name: str) -> bool:
        """Whether there is a file of `keep`, readable or not."""
        return (self.folder / f"{name}.safetensors").exists()

    def _tidy(self, part: str) -> None:
        """Keep this round's versions, the last of each of the KEPT_ROUNDS before, and so many of them in any case."""
        r = self.now[0]
        last: dict[int, Path] = {when[0]: path for _, when, path in self.versions(part) if when[0] < r}
        # a client that sat out the last rounds still needs what it knew before them
        keep = {path for when, path in last.items() if when >= r - KEPT_ROUNDS}
        keep |= set(list(last.values())[-KEPT_ROUNDS:])
        for _, when, path in self.versions(part):
            if when[0] < r and path not in keep:
                path.unlink()
