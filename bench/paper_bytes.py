"""Megabytes of a client in a round of FedMMKT at its paper's sizes, in the small form of the wire (docs/wire.md).

    python bench/paper_bytes.py                  # seconds

N = 800 samples, D = 768, C = 102, photographs of 64 x 64 pixels, texts of 240 bytes, every sample kept. The messages
are packed as a run packs them, with headers; 1 MB is 2^20 bytes. The bars: 0.60 up, 1.8 down, logits 0.05 up. The
messages are those of tests/test_forms.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from florilegium.protocol import codec
from florilegium.protocol.payloads import Logits
from tests.test_forms import HEADER, MB, SMALL, C, N, paper, paper_bytes


def main() -> None:
    form = paper(**SMALL)
    up, down = paper_bytes(form)
    logits = torch.randn(N, C, generator=torch.Generator().manual_seed(0)) * 4
    logits_up = codec.size(codec.pack(Logits(torch.arange(N), logits), HEADER, form=form)) / MB
    print(json.dumps({"up": round(up, 4), "down": round(down, 4), "logits up": round(logits_up, 4)}))


if __name__ == "__main__":
    main()
