"""The splits of the weight-averaging papers that flwr-datasets has not: pure functions of labels and a generator.

Forms and sources: docs/partitions.md. Each gives positions, one array a client; a position is dealt at most once.
Axes: N rows, K clients, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DRAWS = 2000  # tries for a Dirichlet draw that leaves nobody with less than half the average
FEWEST = 0.5  # of the average


class SkewError(ValueError):
    """Rows cannot be dealt in this way; one line that names the setting."""


def grouped_balanced(
    labels_N: np.ndarray, clients: int, alpha: float, group: int, random: np.random.Generator
) -> list[np.ndarray]:
    """Dirichlet, as released with arXiv 2507.06482: drawn in groups of `group` clients, then re-cut to equal sizes.

    The cuts run across the lists of neighbours, so it is milder than its alpha says. Sizes differ by one row at most.
    """
    shuffled = random.permutation(len(labels_N))
    lists = [
        rows
        for part in np.array_split(shuffled, math.ceil(clients / group))
        for rows in _capped_dirichlet(labels_N, part, group, alpha, random)
    ]
    return np.array_split(np.concatenate(lists), clients)


def _capped_dirichlet(
    labels_N: np.ndarray, rows: np.ndarray, clients: int, alpha: float, random: np.random.Generator
) -> list[np.ndarray]:
    """Class after class, shares from Dir(alpha); who holds the average already gets nothing more of a class."""
    by_class = [rows[labels_N[rows] == label] for label in np.unique(labels_N[rows])]
    average = len(rows) / clients
    for _ in range(DRAWS):
        dealt: list[list[np.ndarray]] = [[] for _ in range(clients)]
        sizes_K = np.zeros(clients)
        for own in by_class:
            share_K = random.dirichlet(np.full(clients, alpha)) * (sizes_K < average)
            if not share_K.sum():
                break  # all of the draw fell to clients that are full
            cuts = (np.cumsum(share_K / share_K.sum()) * len(own)).astype(int)[:-1]
            parts = np.split(random.permutation(own), cuts)
            sizes_K += [len(part) for part in parts]
            for mine, part in zip(dealt, parts, strict=True):
                mine.append(part)
        else:
            if sizes_K.min() >= FEWEST * average:
                return [np.concatenate(mine) for mine in dealt]
    raise SkewError(f"alpha: none of {DRAWS} draws with {alpha} gives each of {clients} clients half the average")


def biased_unbiased(
    labels_N: np.ndarray, classes: int, biased: int, per_biased: int, unbiased: int, random: np.random.Generator
) -> list[np.ndarray]:
    """NID2 (arXiv 2305.19229): `biased` clients of a few classes each, then `unbiased` ones of all, equal sizes.

    Biased client i holds classes i*m .. i*m + m-1 (mod C) with m = `per_biased`, an unbiased one 1/K of every class.
    Where classes have unequal rows or holders, all clients are cut to the smallest.
    """
    if per_biased > classes:
        raise SkewError(f"classes_per_biased is {per_biased}, but there are {classes} classes")
    held = [{(i * per_biased + j) % classes for j in range(per_biased)} for i in range(biased)]
    dealt: list[list[np.ndarray]] = [[] for _ in range(biased + unbiased)]
    for label in range(classes):
        own = random.permutation(np.flatnonzero(labels_N == label))
        each = len(own) // (biased + unbiased)
        holders = [i for i, mine in enumerate(held) if label in mine]
        for k in range(unbiased):
            dealt[biased + k].append(own[k * each : (k + 1) * each])
        if holders:
            rest = own[unbiased * each : (unbiased + biased) * each]
            for i, part in zip(holders, np.array_split(rest, len(holders)), strict=True):
                dealt[i].append(part)
    whole = [random.permutation(np.concatenate(mine)) for mine in dealt]
    smallest = min(map(len, whole))
    return [mine[:smallest] for mine in whole]


def long_tail(labels_N: np.ndarray, classes: int, imbalance: float, random: np.random.Generator) -> np.ndarray:
    """Positions that stay, ascending: n_c = floor(N/C * imbalance^(c/(C-1))) of class c, or all where it has fewer."""
    kept = []
    for label in range(classes):
        own = np.flatnonzero(labels_N == label)
        most = math.floor(len(labels_N) / classes * imbalance ** (label / max(classes - 1, 1)) + 1e-9)
        kept.append(random.permutation(own)[:most])
    return np.sort(np.concatenate(kept))


def by_domain(values_N: Sequence[str], domains_K: Sequence[str], random: np.random.Generator) -> list[np.ndarray]:
    """Client k gets rows of domain `domains_K[k]` alone; clients of one domain share it in equal, random parts."""
    values = np.array([str(value) for value in values_N])
    dealt: list[np.ndarray] = [np.zeros(0, dtype=int)] * len(domains_K)
    for domain in sorted(set(domains_K)):
        own = random.permutation(np.flatnonzero(values == domain))
        members = [k for k, name in enumerate(domains_K) if name == domain]
        for k, part in zip(members, np.array_split(own, len(members)), strict=True):
            dealt[k] = part
    return dealt


def effective_classes(counts_KC: np.ndarray) -> np.ndarray:
    """exp(entropy) of each client's labels, [K]: 1 for a client of one class, C for one that has all alike."""
    p_KC = counts_KC / np.maximum(counts_KC.sum(-1, keepdims=True), 1)
    return np.exp(-(p_KC * np.log(np.where(p_KC > 0, p_KC, 1))).sum(-1))
