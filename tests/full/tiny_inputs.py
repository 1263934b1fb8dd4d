"""What an experiment of a paper needs on disk, tiny: checkpoints of clients in the hub's layout, and data sets."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from PIL import Image

SMALL = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
IMAGE = {
    "vit": transformers.ViTConfig(**SMALL, image_size=16, patch_size=8),
    "beit": transformers.BeitConfig(**SMALL, image_size=16, patch_size=8, use_shared_relative_position_bias=True),
    "resnet": transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
}
TEXT = {
    "bert": transformers.BertConfig(**SMALL, vocab_size=90, max_position_embeddings=16),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=90, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=16
    ),
    "roberta": transformers.RobertaConfig(**SMALL, vocab_size=90, max_position_embeddings=18, pad_token_id=0),
}
NAMES = ["rose", "lily", "iris"]
WORDS = ["red", "blue", "white"]


def write_backbones(folder: Path) -> dict[str, str]:
    """{architecture: directory} of a random checkpoint of each, with its processor or tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for kind, config in {**IMAGE, **TEXT}.items():
            transformers.AutoModel.from_config(config).save_pretrained(folder / kind)
    for kind in IMAGE:
        transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / kind)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"a picture of the flower".split(), *NAMES, *WORDS]
    for kind in TEXT:
        speller = transformers.BertTokenizer({word: i for i, word in enumerate(words)}, model_max_length=16)
        speller.save_pretrained(folder / kind)
    return {kind: str(folder / kind) for kind in (*IMAGE, *TEXT)}


def picture(label: int, n: int) -> Image.Image:
    """16 x 16 pixels of one colour a class, with noise."""
    noise = np.random.default_rng(n).integers(0, 60, (16, 16, 3))
    return Image.fromarray((noise + 180 * np.eye(3, dtype=int)[label % 3]).astype(np.uint8))


def write_pictures(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(names):
        picture(n, n).save(folder / name, quality=95)


def write_flowers(place: Path, count: int = 120) -> None:
    """Flowers with texts: image n is of class n % 3 + 1 and has two captions."""
    write_pictures(place / "jpg", [f"image_{n:05}.jpg" for n in range(count)])
    for n in range(count):
        folder = place / "text_c10" / f"class_{n % 3 + 1:05}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"image_{n:05}.txt").write_text(f"a {WORDS[n % 3]} flower\nthe {NAMES[n % 3]}\n")


def write_food(place: Path, count: int = 120) -> None:
    """UPMC Food-101: three classes, a title each."""
    for split, many in (("train", count), ("test", count // 5)):
        (place / "texts").mkdir(parents=True, exist_ok=True)
        rows = [(f"{n}.jpg", f"a {WORDS[n % 3]} flower", NAMES[n % 3]) for n in range(many)]
        for n, (name, _, label) in enumerate(rows):
            folder = place / "images" / split / label
            folder.mkdir(parents=True, exist_ok=True)
            picture(n, n).save(folder / name)
        (place / "texts" / f"{split}_titles.csv").write_text("".join(f"{a},{b},{c}\n" for a, b, c in rows))


def write_flickr(place: Path, count: int = 120) -> None:
    """Flickr30k: two captions an image."""
    write_pictures(place / "flickr30k-images", [f"{n}.jpg" for n in range(count)])
    lines = [f"{n}.jpg| {k}| {word} {WORDS[n % 3]} ." for n in range(count) for k, word in enumerate(("a", "the"))]
    (place / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *lines]))


def write_labelled(place: Path, label: str = "label", count: int = 120) -> None:
    """A labelled set of a hub, as `save_to_disk` leaves it."""
    kinds = datasets.Features({"img": datasets.Image(), label: datasets.ClassLabel(names=NAMES)})
    splits = {}
    for split, many in (("train", count), ("test", count // 5)):
        cells = {"img": [picture(n, n) for n in range(many)], label: [n % 3 for n in range(many)]}
        splits[split] = datasets.Dataset.from_dict(cells, features=kinds)
    datasets.DatasetDict(splits).save_to_disk(place)


DATA = {
    "flowers102": (write_flowers, ["data.path={}", f"data.classes={json.dumps(NAMES)}"]),
    "food101": (write_food, ["data.path={}"]),
    "flickr30k": (write_flickr, ["data.path={}"]),
    "cifar10": (write_labelled, ["data.hub={}"]),
    "cifar100": (lambda place: write_labelled(place, "fine_label"), ["data.hub={}"]),
}


@cache
def written_data(name: str, folder: Path) -> list[str]:
    """Hydra overrides that put a tiny set, written once below the folder, in the place of the one of this name."""
    write, overrides = DATA[name]
    place = folder / name
    write(place)
    return [*(text.format(place) for text in overrides), "data.image_size=16", "++data.public.pairs=null"]
