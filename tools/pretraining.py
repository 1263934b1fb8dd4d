"""The public pre-training set, as arrays and prompts, and the prompt template of the whole system.

Shapes: N images, 3 channels, 32 x 32. Labels count the 24 emoji classes, then the 10 fashion classes; -1 is other.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from dataset_files import PRETRAINING_EMOJI, PRETRAINING_FASHION

DATA = Path("assets/data")
NO_ARTICLE = {"clothing", "weather", "trousers"}


def with_article(name: str) -> str:
    if name in NO_ARTICLE:
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def template(name: str) -> str:
    """The prompt that synthesis and evaluation use everywhere."""
    return f"A picture of {with_article(name)}."


def class_names(data: Path = DATA) -> list[str]:
    files = (data / "emoji/classes.json", data / "fashion/classes.json")
    return [row["name"] for file in files for row in json.loads(file.read_text())]


def pixels(rows: datasets.Dataset) -> torch.Tensor:
    """N x 3 x 32 x 32 bytes."""
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in rows["image"]])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def read(path: Path) -> datasets.Dataset:
    return datasets.Dataset.from_parquet(str(path))


@dataclass
class Examples:
    """Pictures with what is said of them; label -1 means outside every class."""

    images: torch.Tensor
    texts: list[str]
    tags: list[list[str]]
    labels: np.ndarray
    names: list[str]

    def class_prompt(self, i: int) -> str:
        return template(self.names[self.labels[i]])

    def caption(self, i: int) -> str:
        """'a picture of a red apple, a fruit': one of the prompts."""
        if self.labels[i] < 0 or self.texts[i] == self.names[self.labels[i]]:
            return f"a picture of {with_article(self.texts[i])}"
        return f"a picture of {with_article(self.texts[i])}, {with_article(self.names[self.labels[i]])}"

    def told(self, i: int) -> str:
        """'a picture of a fruit, a red apple': what the captioner learns to say."""
        if self.labels[i] < 0 or self.texts[i] == self.names[self.labels[i]]:
            return f"a picture of {with_article(self.texts[i])}"
        return f"a picture of {with_article(self.names[self.labels[i]])}, {with_article(self.texts[i])}"

    def prompts(self, i: int, rng: np.random.Generator) -> str:
        """One of the forms in which a picture's text is told while pre-training."""
        form, text = rng.random(), self.texts[i]
        if self.labels[i] >= 0 and form < 0.45:
            return self.class_prompt(i)
        if form < 0.65:
            return self.caption(i).capitalize() + "."
        if form < 0.75:
            return self.caption(i)
        if form < 0.85 or not self.tags[i]:
            return text
        return f"{text}, {', '.join(rng.permutation(self.tags[i])[:3])}"

    def sampling_weights(self, others: float) -> np.ndarray:
        """Every class is drawn equally often; `others` is the share of pictures outside the classes."""
        shares = np.zeros(len(self.labels))
        known = np.unique(self.labels[self.labels >= 0])
        for label in known:
            chosen = self.labels == label
            shares[chosen] = (1 - others) / len(known) / chosen.sum()
        shares[self.labels < 0] = others / max(1, (self.labels < 0).sum())
        return shares / shares.sum()


def examples(rows: datasets.Dataset, names: list[str], first_label: int = 0) -> Examples:
    labels = np.array(rows["label"])
    tags = list(rows["tags"]) if "tags" in rows.column_names else [[]] * len(rows)
    labels = np.where(labels < 0, -1, labels + first_label)
    return Examples(pixels(rows), list(rows["text"]), tags, labels, names)


def pretraining_examples(cache: Path) -> Examples:
    """Public emoji (no validation or test concept) followed by the 20,000 public fashion images."""
    names = class_names()
    emoji = examples(read(cache / PRETRAINING_EMOJI), names)
    fashion = examples(read(cache / PRETRAINING_FASHION), names, first_label=len(names) - 10)
    return Examples(
        torch.cat([emoji.images, fashion.images]),
        emoji.texts + fashion.texts,
        emoji.tags + fashion.tags,
        np.concatenate([emoji.labels, fashion.labels]),
        names,
    )


def record_concepts(folder: Path, cache: Path) -> None:
    """Writes beside a model which concepts it was trained on; tests/test_leaks.py reads it."""
    emoji = read(cache / PRETRAINING_EMOJI)
    told = {"concepts": sorted(set(emoji["concept"])), "also": "20,000 public pictures of Fashion-MNIST"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trained_on.json").write_text(json.dumps(told) + "\n")
