"""What LabVote and MultiRepFusion cost beside their matrix products alone, and their peak memory.

    python bench/fusion.py                                  # N = 8,000, d = 768, 64 clients; minutes
    python bench/fusion.py --samples 2000 --clients 16      # a first look

*Products* are the three products of two matrices that a client needs in the arithmetic of the server: its similarity to
the keys, the attended mix of the values, its similarity to the anchors; block by block, and nothing else. They are
timed for a few clients and counted for all, since they are the same for each. Each side runs in a process of its own.
Seconds are CPU seconds. Bars: 2 times the products, and under 2 GB of resident memory. The clients' answers, 1.57 GB,
count; the libraries do not.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from florilegium.federation.guard import Guard
from florilegium.methods.fedmmkt import consensus
from strategies.fedmmkt import FedMMKT, FedMMKTSettings

CLASSES, TIMED = 102, 2  # classes of the paper's data; clients whose products are timed


def answers(samples: int, width: int, clients: int) -> list[Any]:
    """Replies of as many image as text clients, drawn one after the other."""
    random = torch.Generator().manual_seed(0)
    made = []
    for k in range(clients):
        body = SimpleNamespace(
            labels=torch.randint(CLASSES, (samples,), generator=random),
            confidence=torch.rand(samples, generator=random),
            representations=torch.randn(samples, width, generator=random),
        )
        modality = "image" if k < clients // 2 else "text"
        made.append(SimpleNamespace(client=SimpleNamespace(id=k, modality=modality), body=body))
    return made


def server(classes: int) -> FedMMKT:
    """The server side of FedMMKT without a generator: `agree` needs its settings and the number of classes."""
    half = FedMMKT.__new__(FedMMKT)
    half.settings, half.classes = FedMMKTSettings(vote_threshold=0.0, prompt_veto=False), range(classes)  # type: ignore
    return half


def ours(samples: int, width: int, clients: int) -> dict[str, float]:
    """CPU seconds of `FedMMKT.agree`, and the peak of memory in MB, with the answers and without the libraries."""
    libraries = peak_mb()
    replies, drawn_N = answers(samples, width, clients), torch.arange(samples) % CLASSES
    before = peak_mb()
    began = time.process_time()
    _, keep_N, fused_ND, _, _ = server(CLASSES).agree(Guard(), replies, drawn_N)
    assert keep_N.all() and fused_ND.shape == (samples, width)
    return {"seconds": time.process_time() - began, "peak_mb": peak_mb() - libraries, "before_mb": before - libraries}


def products(samples: int, width: int, clients: int) -> dict[str, float]:
    """CPU seconds of the products alone, for all clients."""
    random = torch.Generator().manual_seed(0)
    query, key, value, anchor = (torch.randn(samples, width, generator=random) for _ in range(4))
    began = time.process_time()
    for _ in range(TIMED):
        for at in consensus.blocks(samples):
            mixed = multiply(multiply(query[at], key.T), value)
            multiply(mixed, anchor.T)
    return {"seconds": (time.process_time() - began) * clients / TIMED}


def multiply(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(samples: int = 8000, width: int = 768, clients: int = 64) -> dict[str, float]:
    """Both sides, each in a process of its own: seconds, their ratio, and the peak of memory."""
    found = {}
    for side in ("products", "ours"):
        words = [str(n) for n in (samples, width, clients)]
        done = subprocess.run(
            [sys.executable, __file__, "--side", side, *words], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"bench/fusion.py: {done.stderr.strip().splitlines()[-1]}")
        found[side] = json.loads(done.stdout.splitlines()[-1])
    return {
        "ratio": found["ours"]["seconds"] / found["products"]["seconds"],
        "peak_mb": found["ours"]["peak_mb"],
        "answers_mb": found["ours"]["before_mb"],
        "seconds": found["ours"]["seconds"],
        "products_seconds": found["products"]["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("samples", 8000), ("width", 768), ("clients", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--side", nargs=4, metavar=("SIDE", "N", "D", "K"), help="one side, in this process")
    given = parser.parse_args()
    if given.side:
        torch.set_num_threads(1)
        side = {"ours": ours, "products": products}[given.side[0]]
        print(json.dumps(side(*map(int, given.side[1:]))))
        return
    found = measure(given.samples, given.width, given.clients)
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))


if __name__ == "__main__":
    main()
