"""Builds the fashion data set: Fashion-MNIST padded to 32x32 RGB, a federated part and a public part.

The federated part goes to assets/data/fashion; the 20,000 public images go into the cache for pre-training only.
"""

import argparse
import gzip
import io
import json
from pathlib import Path

import numpy as np
from data_cards import fashion_card
from dataset_files import PRETRAINING_FASHION, features, write_parquet
from PIL import Image
from rich.progress import track

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
SPLIT_SEED = 20170825  # the day Fashion-MNIST came out
PUBLIC, TRAIN, VALIDATION, TEST = 20_000, 12_000, 2_000, 4_000
CLASSES = ["t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


def images(path: Path) -> np.ndarray:
    """N x 28 x 28 bytes of an IDX file."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)


def labels(path: Path) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=8)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    # stored grey, which halves the files; the column's declared mode makes `datasets` decode it as RGB
    Image.fromarray(np.pad(image, 2)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def balanced_parts(label: np.ndarray, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Disjoint index sets with equally many images of every class, in a seeded order."""
    rng = np.random.default_rng(SPLIT_SEED)
    by_class = [rng.permutation(np.flatnonzero(label == c)) for c in range(len(CLASSES))]
    cuts = np.cumsum([size // len(CLASSES) for size in sizes])
    parts = zip(*(np.split(indices, cuts)[:-1] for indices in by_class), strict=True)
    return [rng.permutation(np.concatenate(part)) for part in parts]


def rows(pixels: np.ndarray, label: np.ndarray, first_id: int, part: str, told: str) -> list[dict]:
    return [
        {"id": first_id + i, "image": {"bytes": png(image), "path": None}, "text": CLASSES[y], "label": y, "part": part}
        for i, (image, y) in enumerate(track(list(zip(pixels, map(int, label), strict=True)), told))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=DEBIAN, help="folder with the four IDX files")
    parser.add_argument("--cache", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--out", type=Path, default=Path("assets/data/fashion"))
    args = parser.parse_args()
    if not (args.source / "train-images-idx3-ubyte.gz").exists():
        raise SystemExit("Fashion-MNIST is missing: install the Debian package dataset-fashion-mnist")

    pixels = images(args.source / "train-images-idx3-ubyte.gz")
    label = labels(args.source / "train-labels-idx1-ubyte.gz")
    test_pixels = images(args.source / "t10k-images-idx3-ubyte.gz")[:TEST]
    test_label = labels(args.source / "t10k-labels-idx1-ubyte.gz")[:TEST]
    public, train, validation = balanced_parts(label, (PUBLIC, TRAIN, VALIDATION))
    drawn = {
        "train": rows(pixels[train], label[train], 0, "private", "fashion train"),
        "validation": rows(pixels[validation], label[validation], TRAIN, "private", "fashion validation"),
        "test": rows(test_pixels, test_label, TRAIN + VALIDATION, "private", "fashion test"),
    }
    columns = features(described=False)
    for split, kept in drawn.items():
        write_parquet(kept, columns, args.out / f"{split}.parquet")
    (args.out / "classes.json").write_text(json.dumps([{"name": name} for name in CLASSES], indent=1) + "\n")
    (args.out / "README.md").write_text(fashion_card({s: len(r) for s, r in drawn.items()}, CLASSES))
    shown = rows(pixels[public], label[public], TRAIN + VALIDATION + TEST, "public", "fashion pre-training")
    write_parquet(shown, columns, args.cache / PRETRAINING_FASHION)
    print(f"{sum(map(len, drawn.values()))} pictures in {args.out}; {len(shown)} for pre-training")


if __name__ == "__main__":
    main()
