"""A cache of features: a folder of files, named by their content, that all rounds, arms, clients and runs share.

A file holds one request (these images under these prompts) as float16, mapped into memory when read, with a checksum
and the name of each row (image, prompt). A request that is not there takes the rows it can from files of the same
extractor, projection and seed (another partition's, or those of a computation that died) and computes the rest.
Axes: N images, Q prompts of an image, R rows, D feature width.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from florilegium.data.stored_images import StoredImages, picked
from florilegium.diffusion.features import FeatureExtractor
from florilegium.diffusion.generator import Progress
from florilegium.diffusion.projection import Projection
from florilegium.runs import files

BLOCK = 512  # images computed before they are written: what a dying process may lose
NAME = "S16"  # a row's name: 16 bytes


class CacheError(ValueError):
    """A file of the cache is another model's or version's; the one-line message names both."""


@dataclass(frozen=True)
class Request:
    """Features that are asked for: all that decides them. Images in a file have the key of the same ones in memory."""

    extractor: FeatureExtractor
    images: Tensor | StoredImages
    ids: Tensor
    prompts: Sequence[str]
    which_NQ: Tensor
    projection: Projection
    seed: int
    condition: Tensor | None = None

    @property
    def version(self) -> str:
        """The space in which rows may be shared: model and settings, projection, noise."""
        return hashlib.sha256(f"{self.extractor.version} {self.projection.version} {self.seed}".encode()).hexdigest()

    @property
    def key(self) -> str:
        whole = hashlib.sha256(self.version.encode())
        whole.update(json.dumps([list(self.prompts), *map(list, (self.images.shape, self.which_NQ.shape))]).encode())
        given = (self.images, self.ids, self.which_NQ, *([] if self.condition is None else [self.condition]))
        for values in given:
            for part in values.split(BLOCK):  # stored images are read a block at a time
                whole.update(_buffer(part))
        return whole.hexdigest()[:40]

    @property
    def meta(self) -> dict[str, str | int]:
        return {
            "model": self.extractor.name,
            "extractor": self.extractor.version,
            "projection": self.projection.version,
            "seed": self.seed,
        }

    @property
    def shared(self) -> bool:
        """Whether a row is the same in any request; axes fitted on a batch make it the batch's own."""
        return self.extractor.features.pca == "shared"

    def names(self) -> np.ndarray:
        """Each row's name, [N * Q]."""
        context = "" if self.shared else self.key
        blocks = self.images.split(BLOCK)
        shown = [hashlib.sha1(_buffer(image), usedforsecurity=False) for images in blocks for image in images]
        for n, state in enumerate(shown):
            state.update(b"" if self.condition is None else _buffer(self.condition[n]))
            state.update(f"{context}\n{int(self.ids[n])}\n".encode())
        said = [prompt.encode() for prompt in self.prompts]
        rows = []
        for state, which in zip(shown, self.which_NQ.tolist(), strict=True):
            for p in which:
                row = state.copy()
                row.update(said[p])
                rows.append(row.digest()[:16])
        return np.frombuffer(b"".join(rows), NAME)


class FeatureCache:
    """`features(...)` as `FeatureExtractor.conditional`. `hits` and `misses` count rows found and rows computed."""

    def __init__(self, folder: Path | str) -> None:
        self.folder, self.hits, self.misses = Path(folder), 0, 0

    def features(
        self,
        extractor: FeatureExtractor,
        images: Tensor | StoredImages,
        ids: Tensor,
        prompts: Sequence[str],
        which_NQ: Tensor,
        projection: Projection,
        seed: int,
        progress: Progress | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """float16 [N, Q, D], mapped from its file. CacheError where that file is another model's."""
        request = Request(extractor, images, ids, prompts, which_NQ, projection, seed, condition)
        key = request.key
        path = self.folder / f"{extractor.name}-{request.version[:12]}" / f"{key}.safetensors"
        kept = self._read(path, extractor.version)
        if kept is None:
            files.save(path, *self._made(request, path, progress))
            for part in path.parent.glob(f"part-{key}-*.safetensors"):
                part.unlink(missing_ok=True)
            kept = _mapped(path)[0]["features"]
        else:
            self.hits += which_NQ.numel()
        return kept.view(*which_NQ.shape, -1)

    def open(self, key: str, expected_version: str) -> Tensor:
        """The rows [R, D] kept under a key. FileNotFoundError; CacheError names a model that is not the expected."""
        path = next(self.folder.glob(f"*/{key}.safetensors"), self.folder / f"{key}.safetensors")
        kept = self._read(path, expected_version)
        if kept is None:
            raise FileNotFoundError(f"no whole features in {path}")
        return kept

    def _read(self, path: Path, expected: str) -> Tensor | None:
        """The file's rows; None if there is no such file, or if it is incomplete, which is logged."""
        if not path.exists():
            return None
        try:
            tensors, meta = _mapped(path)
            whole = _checksum(tensors) == meta["sha256"]
        except Exception as error:  # safetensors, JSON and missing keys: each means that the file is not whole
            _say(f"{path} cannot be read ({str(error).splitlines()[0][:80]}); its features are computed again")
            return None
        if meta["extractor"] != expected:
            raise CacheError(
                f"{path} holds features of {meta['model']} {meta['extractor'][:12]}, not of version "
                f"{expected[:12]} that is asked for; delete it or choose another cache folder"
            )
        if not whole:
            _say(f"{path} was altered or is torn (its checksum differs); its features are computed again")
            return None
        return tensors["features"]

    # -- computing -----------------------------------------------------------------------------------------------------

    def _made(self, request: Request, path: Path, progress: Progress | None) -> tuple[dict[str, Tensor], dict]:
        """All rows of a request: found in other files, or computed block by block, each kept as it is done."""
        all_R = request.names()
        names_R, first_R, place_NQ = np.unique(all_R, return_index=True, return_inverse=True)
        n_R, q_R = np.divmod(first_R, request.which_NQ.shape[1])
        rows_R2 = torch.stack([torch.from_numpy(n_R), request.which_NQ[n_R, q_R]], 1)
        values = torch.empty(len(names_R), request.extractor.width(request.projection), dtype=torch.float16)
        missing = np.ones(len(names_R), bool)
        for found, theirs in self._found(names_R, path.parent, request.extractor.version) if request.shared else ():
            values[found], missing[found] = theirs, False
        asked, done = int(missing[place_NQ].sum()), 0
        self.hits, self.misses = self.hits + len(all_R) - asked, self.misses + asked
        order = np.lexsort((n_R, q_R))  # as `conditional` computes them
        todo_R = torch.from_numpy(order[missing[order]])
        for number, todo in enumerate(_blocks(rows_R2, todo_R, BLOCK if request.shared else len(request.images))):
            values[todo] = _computed(request, rows_R2[todo], done, int(missing.sum()), progress)
            done += len(todo)
            if request.shared and done < missing.sum():
                files.save(
                    path.with_name(f"part-{path.stem}-{number}.safetensors"),
                    *_content(values[todo], names_R[todo.numpy()], request.meta),
                )
        return _content(values[torch.from_numpy(place_NQ.ravel())], all_R, request.meta)

    def _found(self, names_R: np.ndarray, folder: Path, expected: str) -> Iterator[tuple[Tensor, Tensor]]:
        """(positions among the sorted names, rows [r, D]) in every whole file of the folder that has some of them."""
        for path in sorted(folder.glob("*.safetensors")):
            try:
                tensors, _ = _mapped(path)
                theirs = tensors["names"].numpy().view(NAME).ravel()
            except Exception:  # torn, or gone meanwhile: then others have it, or it is computed
                continue
            place = np.searchsorted(names_R, theirs).clip(max=len(names_R) - 1)
            same = np.flatnonzero(names_R[place] == theirs)
            if len(same) and (kept := self._read(path, expected)) is not None:
                yield torch.from_numpy(place[same]), kept[torch.from_numpy(same)]


def _blocks(rows_R2: Tensor, todo_R: Tensor, size: int) -> Iterator[Tensor]:
    """The rows to be computed, those of `size` images at a time."""
    for images in rows_R2[todo_R, 0].unique().split(size):
        yield todo_R[torch.isin(rows_R2[todo_R, 0], images)]


def _computed(request: Request, rows_R2: Tensor, done: int, total: int, progress: Progress | None) -> Tensor:
    """Rows (image, prompt) of a request -> float16 [R, D]. ValueError where one is not finite."""
    chosen, place = rows_R2[:, 0].unique(return_inverse=True)
    condition = None if request.condition is None else request.condition[chosen]
    values = request.extractor.pairs(
        picked(request.images, chosen),
        request.ids[chosen],
        request.prompts,
        torch.stack([place, rows_R2[:, 1]], 1),
        request.projection,
        request.seed,
        progress and (lambda now, _: progress(done + now, total)),
        condition,
    ).half()
    if not values.isfinite().all():
        raise ValueError(f"features of {request.extractor.name} are NaN or too large for float16")
    return values


# -- files -----------------------------------------------------------------------------------------------------------


def _content(values: Tensor, names: np.ndarray, meta: dict) -> tuple[dict[str, Tensor], dict]:
    tensors = {"features": values, "names": torch.from_numpy(names.view(np.uint8).reshape(-1, 16).copy())}
    return tensors, {**meta, "sha256": _checksum(tensors)}


def _buffer(values: Tensor) -> Any:
    """A tensor as hashlib reads it; before Python 3.12 numpy's stubs give an array no buffer."""
    return values.contiguous().numpy()


def _checksum(tensors: dict[str, Tensor]) -> str:
    whole = hashlib.sha256(_buffer(tensors["features"]))
    whole.update(_buffer(tensors["names"]))
    return whole.hexdigest()


def _mapped(path: Path) -> tuple[dict[str, Tensor], dict]:
    """(tensors that stand in the file's pages, meta)."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return ({name: file.get_tensor(name) for name in ("features", "names")}, json.loads(file.metadata()["meta"]))


def _say(line: str) -> None:
    logging.getLogger("flwr").warning(line)
