"""Trains the judges (GAN-test classifiers) on real training images; validation picks the weights.

emoji-private sees the clients' styles only, emoji-public the public styles only, fashion the federated part: a judge
that had seen other domains would also pass pictures in them. The lexicon's clients hold too few pictures for a judge
that is right often enough, so lexicon-private also sees public concepts in all styles (build_lexicon draws them).

`--large` trains a second judge, NAME-large: a wider and deeper net, which checks what the first one says.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from augmentation import SIDE, augmented, cut_out, enlarged, mixed
from dataset_files import JUDGE_LEXICON
from pretraining import DATA, Examples, examples, read
from training_loop import arguments, device_of, record, train
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from florilegium.protocol.pixels import scaled

STEPS = {"emoji-private": 1500, "emoji-public": 1500, "lexicon-private": 2500, "fashion": 1200}


SIZES = {"": ([48, 96, 160, 224], [1, 1, 1, 1]), "-large": ([64, 128, 256, 384], [2, 2, 2, 2])}  # widths and depths
MORE = {"lexicon-private": JUDGE_LEXICON}
KEPT_BACK = ("emoji-public",)  # measures the mini models before any tuning; no run needs it, so it is not shipped


def folder_of(judge: str, size: str, out: Path, cache: Path) -> Path:
    return (cache if judge in KEPT_BACK else out) / "judges" / f"{judge}{size}"


def joined(first: Examples, second: Examples) -> Examples:
    return Examples(
        torch.cat([first.images, second.images]),
        first.texts + second.texts,
        first.tags + second.tags,
        np.concatenate([first.labels, second.labels]),
        first.names,
    )


def mini_resnet(names: list[str], size: str) -> ResNetForImageClassification:
    widths, depths = SIZES[size]
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=32,
            hidden_sizes=widths,
            depths=depths,
            layer_type="basic",
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
        )
    )


def processor() -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def split_of(judge: str, split: str) -> Examples:
    data, _, part = judge.partition("-")
    rows = read(DATA / data / f"{split}.parquet")
    names = [entry["name"] for entry in json.loads((DATA / data / "classes.json").read_text())]
    if "modality" in rows.column_names:
        rows = rows.filter(lambda modality: modality == "pair", input_columns="modality")
    return examples(rows.filter(lambda row: row == part, input_columns="part") if part else rows, names)


@torch.no_grad()
def accuracy(model: ResNetForImageClassification, data: Examples, device: torch.device) -> float:
    """Share of pictures whose most likely class is the right one."""
    model.eval()
    right = 0
    for images, labels in zip(data.images.split(512), torch.from_numpy(data.labels).split(512), strict=True):
        right += (model(enlarged(scaled(images)).to(device)).logits.argmax(1).cpu() == labels).sum().item()
    return right / len(data.labels)


def train_judge(judge: str, args, device: torch.device) -> None:
    size = "-large" if args.large else ""
    learnt, held = split_of(judge, "train"), split_of(judge, "validation")
    private = len(learnt.labels)
    if (more := args.cache / MORE.get(judge, "")).is_file():
        learnt = joined(learnt, examples(read(more), learnt.names))
    model = mini_resnet(learnt.names, size).to(device, memory_format=torch.channels_last)
    # the square root between natural and equal class frequencies: small classes are met often enough
    weights = learnt.sampling_weights(others=0.0) ** 0.5
    if private < len(weights):
        weights[private:] *= weights[:private].sum() / weights[private:].sum()  # half of the draws are the clients'
    weights /= weights.sum()
    kept = args.cache / "checkpoints" / f"judge-{judge}{size}.json"
    best = json.loads(kept.read_text()) if kept.exists() else {"validation": 0.0}

    def loss_of(rng: np.random.Generator) -> torch.Tensor:
        chosen = rng.choice(len(weights), args.batch, p=weights)
        images = enlarged(scaled(learnt.images[chosen]))
        images = cut_out(augmented(images, rng), rng)
        target_BC = F.one_hot(torch.from_numpy(learnt.labels[chosen]), len(learnt.names)).float()
        images, target_BC = mixed(images, target_BC, rng)
        logits_BC = model(images.to(device, memory_format=torch.channels_last)).logits
        return F.cross_entropy(logits_BC, target_BC.to(device), label_smoothing=0.05)

    def save(average: ResNetForImageClassification, facts: dict) -> None:
        found = accuracy(average, held, device)
        print(f"{judge}: {found:.3f} on validation after {facts['steps']} steps", flush=True)
        if found >= best["validation"]:
            best.update(facts, validation=round(found, 4))
            half = mini_resnet(learnt.names, size).half()
            half.load_state_dict(average.state_dict())
            folder = folder_of(judge, size, args.out, args.cache)
            half.save_pretrained(folder)
            processor().save_pretrained(folder)
        record(args.cache, f"judge-{judge}{size}", best)

    train(f"judge-{judge}{size}", model, loss_of, save, args, decay=0.998)
    write_card(judge, best, split_of(judge, "test"), folder_of(judge, size, args.out, args.cache), device)


def write_card(judge: str, best: dict, test: Examples, folder: Path, device: torch.device) -> None:
    model = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32).to(device)
    found = accuracy(model, test, device)
    alone = "and on public concepts in the same styles" if judge in MORE else "alone"
    record_line = f"{best['steps']} steps of {best['batch']} pictures in {best['seconds']} s"
    (folder / "README.md").write_text(f"""---
library_name: transformers
pipeline_tag: image-classification
---
# Judge: {folder.name}

A small ResNet that tells the {len(test.names)} classes apart. Trained on this repository's real training images of
`{judge}` {alone} ({record_line};
random zoom, shift, turn, flip, cut-out, mixup); it judges generated images and is never trained on one. Input: RGB in
[-1, 1], enlarged bilinearly to {SIDE}x{SIDE} (`preprocessor_config.json`).

| real images | accuracy |
| --- | --- |
| validation (picked the weights) | {best["validation"]:.1%} |
| test ({len(test.labels)} images, seen once) | {found:.1%} |

Every T2I accuracy it gives is to be read beside its own {found:.1%}.
""")


def main() -> None:
    parser = arguments(__doc__, steps=0, batch=96, lr=2e-3)
    parser.add_argument("--judges", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--large", action="store_true", help="the second judge, NAME-large")
    args = parser.parse_args()
    device, asked = device_of(args), args.steps
    for judge in args.judges:
        args.steps = asked or STEPS[judge]
        train_judge(judge, args, device)


if __name__ == "__main__":
    main()
