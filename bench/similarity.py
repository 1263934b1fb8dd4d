"""Memory and time of the N x N comparison of FedAFD's aggregation, a few rows at a time and all at once.

    python bench/similarity.py [samples]         # default 50000, D = 256; two minutes of one core

Each way runs in a process of its own, whose peak of resident memory is reported. The
bars: under 1 GB at 50,000 samples; equal to all at once (at a size where that fits, 4,000) to 1e-6.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import json
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor

from florilegium.learning.similarity import match_scores

WIDTH, BOTH_WAYS = 256, 4000


def features(samples: int) -> tuple[Tensor, Tensor]:
    """Unit vectors of a client that is half right, and the anchors."""
    random = torch.Generator().manual_seed(0)
    anchor = torch.randn(samples, WIDTH, generator=random)
    rep = torch.randn(samples, WIDTH, generator=random).add_(anchor)
    for x in (rep, anchor):
        x.div_(torch.linalg.vector_norm(x, dim=-1, keepdim=True))
    return rep, anchor


def whole(rep_ND: Tensor, anchor_ND: Tensor) -> Tensor:
    """The same with the whole matrix."""
    return (rep_ND @ anchor_ND.T).log_softmax(-1).diagonal()


def measure(way: str, samples: int) -> dict[str, float]:
    """Peak resident memory of this process in MB (before: libraries and features), and CPU seconds."""
    torch.set_num_threads(1)
    pair = features(samples)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.process_time()
    (match_scores if way == "chunked" else whole)(*pair)
    seconds = time.process_time() - started
    return {
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "before_mb": before,
        "seconds": seconds,
    }


def main() -> None:
    if len(sys.argv) == 3:  # one measurement, in a process of its own
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
        return
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    for way, count in (("chunked", samples), ("chunked", BOTH_WAYS), ("whole", BOTH_WAYS)):
        told = subprocess.run(
            [sys.executable, "-m", "bench.similarity", way, str(count)], capture_output=True, text=True, check=True
        ).stdout
        found = json.loads(told)
        print(
            f"{way:9} {count:6d} samples: peak {found['peak_mb']:7.0f} MB, "
            f"of it libraries and features {found['before_mb']:4.0f} MB; {found['seconds']:6.2f} s"
        )
    rep, anchor = features(BOTH_WAYS)
    apart = (match_scores(rep, anchor, rows=97) - whole(rep.double(), anchor.double())).abs().max().item()
    print(f"farthest from all at once, {BOTH_WAYS} samples: {apart:.1e}")


if __name__ == "__main__":
    main()
