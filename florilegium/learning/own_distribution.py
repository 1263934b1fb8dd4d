"""The accuracy of a classifier on rows that follow the classes of one client's own data.

A test split has its own shares of the classes; a client's rows have others. The accuracy on rows with the client's
shares is sum_c p_c r_c: r_c is the recall of class c on the test split, and p_c the share of c in the client's training
rows. Weighting is exact: a drawn subset of the test rows with the shares p_c would estimate the same number with
sampling noise, and would throw rows away. It assumes that the rows of one class are alike at the client and in the test
split. Axes: N rows, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shares(labels_N: Tensor, classes: int) -> Tensor:
    """The share of each class in these rows, float64 [C]; they sum to 1. ValueError for no rows."""
    if not len(labels_N):
        raise ValueError("no rows, so no shares of classes")
    return torch.bincount(labels_N, minlength=classes).double() / len(labels_N)


def recalls(predicted_N: Tensor, labels_N: Tensor, classes: int) -> Tensor:
    """The fraction of each class's rows that is classified correctly, float64 [C]; NaN for a class without rows."""
    hits_C = torch.bincount(labels_N[predicted_N == labels_N], minlength=classes)
    return hits_C.double() / torch.bincount(labels_N, minlength=classes)


def own_accuracy(recall_C: Tensor, share_C: Tensor) -> float:
    """sum_c p_c r_c, over the classes that have a recall; NaN where none of the client's classes has one."""
    known_C = share_C.where(recall_C.isfinite(), 0)
    if not known_C.any():
        return float("nan")
    return (known_C * recall_C.nan_to_num()).sum().item() / known_C.sum().item()
