"""Measures the backbones alone: fine-tuned on as many rows of the lexicon as a client holds, beside nets from scratch.

Rows are drawn at random from the private training rows (no label skew), the accuracy is that on the test split. Writes
the card of assets/models/backbones.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data_cards import table
from rich.progress import track

from florilegium.config.composition import compose
from florilegium.data.datasets import Rows, held_out, modality_rows, open_dataset, read_rows
from florilegium.models.build import ARCHITECTURES, build, vocabulary
from florilegium.protocol.pixels import scaled

KINDS = ("bert", "distilbert", "roberta", "resnet", "vit", "beit")
ROWS = {"image": 175, "text": 500}
BATCH, SHIFT = 32, 4


def shifted(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A batch mirrored in half of the cases and moved by up to SHIFT pixels, as clients do."""
    if torch.rand((), generator=generator) < 0.5:
        x = x.flip(3)
    dy, dx = torch.randint(0, 2 * SHIFT + 1, (2,), generator=generator).tolist()
    side = x.shape[-1]
    return F.pad(x, (SHIFT,) * 4, mode="replicate")[:, :, dy : dy + side, dx : dx + side]


def inputs(rows: Rows, modality: str, reads) -> torch.Tensor:
    return scaled(rows.images) if modality == "image" else reads(rows.texts)


def accuracy(conf, kind: str, seed: int, args) -> float:
    """Share of test rows that are right after fine-tuning."""
    modality = next(m for m, kinds in ARCHITECTURES.items() if kind in kinds)
    splits = open_dataset(conf.data)
    train = read_rows(modality_rows(splits.private("train"), modality), modality, 32, splits.place)
    test = held_out(conf.data, "test", modality)
    reads = vocabulary(conf.clients, kind) if modality == "text" else None
    x, held, generator = inputs(train, modality, reads), inputs(test, modality, reads), torch.Generator()
    torch.manual_seed(seed)
    generator.manual_seed(seed)
    chosen = torch.randperm(len(x), generator=generator)[: ROWS[modality]]
    model = build(conf.clients, modality, kind, len(splits.classes), reads)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    for _ in range(args.epochs):
        model.train()
        for rows in chosen[torch.randperm(len(chosen), generator=generator)].split(BATCH):
            batch = shifted(x[rows], generator) if modality == "image" else x[rows]
            loss = F.cross_entropy(model(batch), train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        guesses = torch.cat([model(batch).argmax(1) for batch in held.split(256)])
    return (guesses == test.labels).float().mean().item()


def measured(kind: str, args) -> dict[str, list[float]]:
    found = {}
    for start in ("pretrained", "small"):
        conf = compose(["data=lexicon", "clients=eight", f"architectures@clients.architectures={start}"])
        found[start] = [accuracy(conf, kind, seed, args) for seed in range(args.seeds)]
    return found


def card(found: dict[str, dict], facts: dict[str, dict], args) -> str:
    lines = []
    for kind, starts in found.items():
        steps = facts[f"backbone-{kind}"]
        cells = [f"{100 * np.mean(v):.1f} ± {100 * np.std(v, ddof=1) / len(v) ** 0.5:.1f}" for v in starts.values()]
        lines.append([kind, *cells, steps["steps"], steps["batch"], steps["seconds"]])
    head = ["backbone", "pre-trained", "from scratch", "steps", "batch", "seconds"]
    return f"""# Backbones

Small encoders that clients start from (`clients=eight`, `conf/architectures/pretrained.yaml`), in transformers'
formats, fp16. They have the sizes of `conf/architectures/small.yaml`.

- `resnet`, `vit`, `beit` learnt to find a public picture's name among those of all public concepts, as the mini CLIP's
  text tower embeds them (`tools/train_image_backbones.py`).
- `bert`, `distilbert`, `roberta` learnt masked words of WordNet's public definitions and, with the first token, the
  definition's lexicographer file (`tools/train_text_backbones.py`).

`trained_on.json` in each folder says what it was trained on, or for texts what was left out; no concept of the
lexicon's clients, validation or test is among it (`tests/test_leaks.py`).

## Figures

Accuracy in per cent on the lexicon's test split after {args.epochs} epochs on {ROWS["image"]} pictures or
{ROWS["text"]} definitions, drawn without label skew (AdamW, learning rate {args.lr}); mean and standard error of
{args.seeds} draws (`tools/measure_backbones.py`). Steps and seconds are those of the pre-training, on one CPU thread
that other work shared.

{table(head, lines)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--out", type=Path, default=Path("assets/models"))
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="the CPU in any case")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    found = {}
    for kind in track(KINDS, "backbones"):
        found[kind] = measured(kind, args)
        print(kind, found[kind], flush=True)
    places = (args.cache / "checkpoints").glob("backbone-*.json")
    facts = {place.stem: json.loads(place.read_text()) for place in places}
    (args.out / "backbones/README.md").write_text(card(found, facts, args))


if __name__ == "__main__":
    main()
