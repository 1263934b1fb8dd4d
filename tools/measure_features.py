"""Measures what the frozen diffusion features know of the classes of the clients' pictures, beside the pixels alone.

    python tools/measure_features.py lexicon fashion

At most 1,200 private training pictures and 600 of test, all clients' together. Two simple classifiers read them: a
logistic regression (the best of three strengths on the validation split) and the nearest class mean by cosine; both on
standardised values. Prints a Markdown table.
"""

import argparse

import torch
from data_cards import table
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import Tensor

from florilegium.config.composition import compose
from florilegium.data.datasets import Rows, Splits, modality_rows, open_dataset, read_rows
from florilegium.methods.guidance.prompts import opened

SIDE, MOST = 32, {"train": 1200, "validation": 600, "test": 600}
STRENGTHS = (1e-3, 1e-2, 1e-1)  # C of the logistic regression
TIMESTEPS = (50, 150, 300)


def some(splits: Splits, part: str) -> Rows:
    """At most MOST of a split's image rows, drawn at random with a fixed seed."""
    there = modality_rows(splits.private(part), "image")
    order = torch.randperm(len(there), generator=torch.Generator().manual_seed(0)).tolist()
    return read_rows(there.select(order[: MOST[part]]), "image", SIDE, splits.place)


def accuracy(x: dict[str, Tensor], y: dict[str, Tensor]) -> tuple[float, float]:
    """Test accuracy of the logistic regression and of the nearest class mean; `x[part]` is [N, F], `y[part]` is [N]."""
    found = []
    for strength in STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
        model.fit(x["train"].numpy(), y["train"].numpy())
        found.append([model.score(x[part].numpy(), y[part].numpy()) for part in ("validation", "test")])
    means = make_pipeline(StandardScaler(), Normalizer(), NearestCentroid())
    means.fit(x["train"].numpy(), y["train"].numpy())
    return max(found)[1], means.score(x["test"].numpy(), y["test"].numpy())


def measured(name: str) -> list[list[str]]:
    """Lines of the table for one data set."""
    conf = compose([f"data={name}", "method=feddifrc", "clients=ten"])
    splits, extractor = open_dataset(conf.data), opened(conf.diffusion)
    rows = {part: some(splits, part) for part in MOST}
    labels = {part: held.labels for part, held in rows.items()}
    seen = {"pixels": {part: held.images.flatten(1) / 255 for part, held in rows.items()}}
    for t in TIMESTEPS:
        parts = {part: extractor.levels(held.images, torch.arange(len(held)), t, seed=0) for part, held in rows.items()}
        layers = [*extractor.layers, "vae"] if t == TIMESTEPS[0] else extractor.layers  # the latents have no noise
        for layer in layers:
            key = "VAE latents" if layer == "vae" else f"{layer}, t = {t}"
            seen[key] = {part: levels[layer] for part, levels in parts.items()}
    return [
        [name, key, str(x["train"].shape[1]), *(f"{100 * value:.1f}" for value in accuracy(x, labels))]
        for key, x in seen.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="data sets of conf/data with images")
    lines = [line for name in parser.parse_args().data for line in measured(name)]
    print(table(["data", "what is read", "width", "logistic regression, %", "nearest class mean, %"], lines))


if __name__ == "__main__":
    main()
