"""Which rows of own data are for training, for validation and for testing, where the data do not say so.

Drawn by a seed and the content of the rows, so that the order of files and other rows change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from florilegium.data.datasets import Classes, DataError, Rows, grouped
from florilegium.data.stored_images import picked


def hashes_of(rows: Rows, classes: Classes) -> list[str]:
    """A hash of each row's picture, text and class."""
    found = []
    for n, label in enumerate(rows.labels.tolist()):
        digest = hashlib.sha256(rows.images[n].numpy().tobytes() if len(rows.images) else b"")
        digest.update(f"{rows.texts[n] if rows.texts else ''}\0{classes[label]}".encode())
        found.append(digest.hexdigest()[:32])
    return found


def groups_of(rows: Rows) -> list[int]:
    """A number of each row, equal for rows that show the same picture or say the same text."""
    if len(rows.groups):
        return [int(group) for group in rows.groups]
    shown = [hashlib.sha256(image.numpy().tobytes()).digest() for image in rows.images] if len(rows.images) else None
    return grouped(shown or list(range(len(rows))), rows.texts or [str(n) for n in range(len(rows))]).tolist()


def drawn(
    hashes: Sequence[str],
    groups_N: Sequence[int],
    labels_N: Sequence[int],
    shares: dict[str, float],
    seed: str,
    rest: str,
    only: Collection[str] | None = None,
) -> dict[str, str]:
    """A name for each row (by its hash), by shares of each class.

    Rows of one group get the same. A class keeps one group for `rest`, and gives each name one while it has more.
    """
    members: dict[int, list[str]] = {}
    labels: dict[int, int] = {}
    for row, group, label in zip(hashes, groups_N, labels_N, strict=True):
        if only is None or row in only:
            members.setdefault(group, []).append(row)
            labels.setdefault(group, label)
    found: dict[str, str] = {}
    for label in sorted(set(labels.values())):
        order = sorted(
            (hashlib.sha256(f"{seed} {min(members[group])}".encode()).hexdigest(), group)
            for group in members
            if labels[group] == label
        )
        groups = [group for _, group in order]
        for name, share in shares.items():
            count = min(max(round(share * len(order)), 1 if share else 0), len(groups) - 1)
            taken, groups = groups[: max(count, 0)], groups[max(count, 0) :]
            found |= {row: name for group in taken for row in members[group]}
        found |= {row: rest for group in groups for row in members[group]}
    return found


def split_rows(rows: Rows, classes: Classes, shares: dict[str, float], seed: int) -> dict[str, Rows]:
    """Rows of one site as {split: rows}, `train` being what the shares leave. DataError when a split has none."""
    hashes = hashes_of(rows, classes)
    names = drawn(hashes, groups_of(rows), rows.labels.tolist(), shares, f"{seed} split", "train")
    found = {}
    for split in ("train", *shares):
        chosen = torch.tensor([n for n, row in enumerate(hashes) if names[row] == split], dtype=torch.int64)
        if not len(chosen):
            raise DataError(f"there are too few rows to split: none is left for {split} ({split}-path names others)")
        found[split] = selected(rows, chosen)
    return found


def selected(rows: Rows, chosen: torch.Tensor) -> Rows:
    """The rows of these positions."""
    some = chosen.tolist()
    return replace(
        rows,
        ids=rows.ids[chosen],
        labels=rows.labels[chosen],
        images=picked(rows.images, chosen) if len(rows.images) else rows.images,
        texts=tuple(rows.texts[n] for n in some) if rows.texts else (),
        tags=tuple(rows.tags[n] for n in some) if rows.tags else (),
        groups=rows.groups[chosen] if len(rows.groups) else rows.groups,
    )
