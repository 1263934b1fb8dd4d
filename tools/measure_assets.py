"""Measures the mini models on real held-out pictures and on generated ones; writes the figures, grids and model card.

Guidance is picked with one set of seeds, and the figures are then taken with others.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from augmentation import SIDE
from diffusers import AutoencoderKL, StableDiffusionPipeline
from model_card import model_card
from PIL import Image
from pretraining import DATA, class_names, pixels, read, template
from rich.progress import track
from torch.nn.functional import interpolate
from train_judges import accuracy, folder_of, split_of
from training_loop import device_of
from transformers import BlipForConditionalGeneration, BlipProcessor, ResNetForImageClassification

from florilegium.protocol.pixels import scaled

STEPS = 20
PICK_SEED, FIGURE_SEED = 1_000, 2_000
GUIDANCES = (1.0, 2.0, 3.0, 5.0)


def held_out(split: str, part: str):
    return read(DATA / f"emoji/{split}.parquet").filter(lambda p: p == part, input_columns="part")


@torch.no_grad()
def vae_psnr(models: Path, rows) -> float:
    """Mean over pictures of 10 log10(4 / mean squared error), in dB, on [-1, 1]."""
    vae = AutoencoderKL.from_pretrained(models / "mini-sd/vae", torch_dtype=torch.float32)
    images = scaled(pixels(rows))
    rebuilt = torch.cat([vae.decode(vae.encode(b).latent_dist.mode()).sample for b in images.split(256)])
    return (10 * torch.log10(4 / (rebuilt.clamp(-1, 1) - images).square().mean((1, 2, 3)))).mean().item()


def generated(pipe: StableDiffusionPipeline, names: list[str], each: int, guidance: float, seed: int) -> list[list]:
    """pictures[class][k]: k-th of each; the noise depends on the seed and k alone."""
    pictures: list[list] = [[] for _ in names]
    for k in track(range(each), f"drawing at guidance {guidance}"):
        noise = [torch.Generator().manual_seed(seed + 97 * c + 10_007 * k) for c in range(len(names))]
        told = {"num_inference_steps": STEPS, "guidance_scale": guidance, "height": 32, "width": 32}
        drawn = pipe([template(name) for name in names], generator=noise, **told).images
        for c, picture in enumerate(drawn):
            pictures[c].append(picture)
    return pictures


@torch.no_grad()
def judged(judge: ResNetForImageClassification, pictures: list[list]) -> float:
    bytes_N = np.stack([np.asarray(p.convert("RGB")) for row in pictures for p in row])
    images = scaled(torch.from_numpy(bytes_N).permute(0, 3, 1, 2))
    guess = judge(interpolate(images, (SIDE, SIDE), mode="bilinear")).logits.argmax(1)
    truth = torch.arange(len(pictures)).repeat_interleave(len(pictures[0]))
    return (guess == truth).float().mean().item()


@torch.no_grad()
def zero_shot(models: Path, rows, names: list[str]) -> float:
    source = f"local-dir:{models / 'mini-clip'}"
    model, preprocess = open_clip.create_model_from_pretrained(source)
    model.eval()
    text = model.encode_text(open_clip.get_tokenizer(source)([template(name) for name in names]), normalize=True)
    images = torch.stack([preprocess(image) for image in rows["image"]])
    guess = torch.cat([(model.encode_image(b, normalize=True) @ text.T).argmax(1) for b in images.split(256)])
    return (guess == torch.tensor(rows["label"])).float().mean().item()


def captions(models: Path, rows) -> list[str]:
    processor = BlipProcessor.from_pretrained(models / "mini-captioner")
    model = BlipForConditionalGeneration.from_pretrained(models / "mini-captioner", dtype=torch.float32).eval()
    told = []
    for start in range(0, len(rows), 128):
        batch = processor(images=rows[start : start + 128]["image"], return_tensors="pt")
        told += processor.batch_decode(model.generate(**batch, max_new_tokens=20), skip_special_tokens=True)
    return told


def names_the_class(caption: str, label: int, names: list[str], words: list[set[str]]) -> bool:
    """The caption says the class's name, or the label of one of its concepts, as whole words."""
    spaced = f" {caption.replace(',', ' ').replace('.', ' ')} "
    spaced = " ".join(["", *spaced.split(), ""])
    return any(f" {word} " in spaced for word in {names[label]} | words[label])


def concept_words(names: list[str]) -> list[set[str]]:
    """Per class the labels of its concepts, of every split; a caption may name an unseen one by luck only."""
    words: list[set[str]] = [set() for _ in names]
    for split in ("train", "validation", "test"):
        rows = read(DATA / f"emoji/{split}.parquet")
        for text, label in zip(rows["text"], rows["label"], strict=True):
            words[label].add(" ".join(text.lower().replace(",", " ").split()))
    return words


def grid(pictures: list[list], columns: int) -> Image.Image:
    """One row of pictures per class, in class order."""
    sheet = Image.new("RGB", (34 * columns, 34 * len(pictures)), "white")
    for y, row in enumerate(pictures):
        for x, picture in enumerate(row[:columns]):
            sheet.paste(picture, (34 * x + 1, 34 * y + 1))
    return sheet


def t2i_figures(models: Path, cache: Path, device: torch.device, each: int) -> dict:
    """Guidance, T2I accuracy by each judge and the judges' own accuracy; writes the sample grids."""
    pipe = StableDiffusionPipeline.from_pretrained(models / "mini-sd", torch_dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    names, found = class_names(), {}
    judges = {n: folder_of(n, models, cache) for n in ("emoji-public", "emoji-private", "fashion")}
    judges = {n: ResNetForImageClassification.from_pretrained(f, dtype=torch.float32).eval() for n, f in judges.items()}
    for data, own, judge in (("emoji", names[:24], "emoji-public"), ("fashion", names[24:], "fashion")):
        tried = {g: judged(judges[judge], generated(pipe, own, 4, g, PICK_SEED)) for g in GUIDANCES}
        guidance = max(tried, key=tried.get)
        drawn = generated(pipe, own, each, guidance, FIGURE_SEED)
        grid(drawn, 8).save(models / f"samples-{data}.png", optimize=True)
        found[data] = {"guidance": guidance, "tried": tried, "images_per_class": each}
        for name, model in judges.items():
            if name.startswith(data):
                found[data][name] = judged(model, drawn)
    for name, model in judges.items():
        found[f"judge/{name}"] = accuracy(model, split_of(name, "test"), torch.device("cpu"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=10, help="generated pictures per class")
    parser.add_argument("--cache", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--out", type=Path, default=Path("assets/models"))
    args = parser.parse_args()
    device, names = device_of(args), class_names()[:24]

    test = {part: held_out("test", part) for part in ("public", "private")}
    figures: dict = {f"vae_psnr/{part}": vae_psnr(args.out, rows) for part, rows in test.items()}
    figures |= {f"zero_shot/{part}": zero_shot(args.out, rows, names) for part, rows in test.items()}
    words, said = concept_words(names), {}
    for part, rows in test.items():
        said[part] = captions(args.out, rows)
        hits = [names_the_class(c, y, names, words) for c, y in zip(said[part], rows["label"], strict=True)]
        figures[f"caption/{part}"] = float(np.mean(hits))
    figures["caption/examples"] = [[t, c] for t, c in zip(test["public"]["text"], said["public"], strict=True)][::60]
    figures |= t2i_figures(args.out, args.cache, device, args.each)
    facts = {p.stem: json.loads(p.read_text()) for p in sorted((args.cache / "checkpoints").glob("*.json"))}
    (args.out / "figures.json").write_text(json.dumps({"figures": figures, "training": facts}, indent=1) + "\n")
    (args.out / "README.md").write_text(model_card(figures, facts))
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
