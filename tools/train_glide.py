"""Trains the mini GLIDE: it draws 16 x 16 pixels from a text; `diffusion.size` enlarges them to 32 x 32.

It learns from the public pictures of the lexicon that are emoji, with the prompts that the U-Net of the mini Stable
Diffusion gets: the emoji's classes, names and tags. So it knows eight of the lexicon's class names, and the others in
passing. The text encoder, the noise channels and the variance channels train together.

There is no second model that enlarges. The lexicon's judge is right for 78.6 % of the real test pictures, and for
78.1 % of the same pictures made 16 x 16 and enlarged again: it would add little for its training time.

Axes: B batch, N pictures, P distinct prompts, T positions, S image side.
"""

import copy
import json

import numpy as np
import torch
import torch.nn.functional as F
from pretraining import DATA, Examples, class_names, examples, read
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from train_unet import SHIFTS, CachedPrompts, prompt_forms
from training_loop import arguments, device_of, record, train

from florilegium.diffusion.glide.conversion import GlideShape
from florilegium.diffusion.glide.pipeline import GlidePipeline
from florilegium.diffusion.glide.sampling import cumulative_alphas
from florilegium.diffusion.glide.tokenizer import END, from_vocabulary, tokenize
from florilegium.diffusion.glide.variational import variational_term
from florilegium.protocol.pixels import scaled

SYMBOLS = 1200  # of the vocabulary: 256 bytes, pairs that the prompts have often, the end token
SHAPE = GlideShape(
    size=16,
    channels=32,
    multipliers=(1, 2, 2),
    blocks=1,
    attended=(1, 2),
    head=32,
    groups=8,
    dropout=0.0,
    positions=24,
    width=96,
    layers=2,
    heads=4,
    vocabulary=SYMBOLS,
)
LARGEST_WEIGHT = 10.0  # of a noise level in the loss


def public_examples() -> tuple[Examples, list[str]]:
    """(public emoji of the training split that are pictures of the lexicon too, their concepts)."""
    found = []
    for name in ("lexicon", "emoji"):
        rows = read(DATA / name / "train.parquet")
        found.append(rows.filter(lambda part: part == "public", input_columns="part"))
    lexicon, emoji = found
    shown = set(zip(lexicon["concept"], lexicon["style"], strict=True))
    rows = emoji.filter(lambda *which: which in shown, input_columns=["concept", "style"])
    return examples(rows, class_names()), sorted(set(rows["concept"]))


def variants(images: Tensor) -> Tensor:
    """uint8 [N, V, 3, 32, 32]: every picture in each shift, as it is and mirrored."""
    padded = F.pad(images.float(), (1, 1, 1, 1), mode="replicate").to(torch.uint8)
    moved = [padded[:, :, 1 + dy : 33 + dy, 1 + dx : 33 + dx] for dx, dy in SHIFTS]
    return torch.stack([each for m in moved for each in (m, m.flip(3))], 1)


def made_smaller(images: Tensor) -> Tensor:
    """[B, 3, S, S] in [-1, 1] -> the base model's size, as fine-tuning does it."""
    side = (SHAPE.size, SHAPE.size)
    return F.interpolate(images, side, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)


def learnt_tokenizer(texts: list[str]):
    """A byte-pair vocabulary of these texts, spelt as GLIDE spells."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SYMBOLS - 1, initial_alphabet=sorted(alphabet), show_progress=False)
    learner.train_from_iterator([text.lower() for text in texts], trainer)
    found = json.loads(learner.to_str())["model"]
    if len(found["vocab"]) != SYMBOLS - 1:
        raise ValueError(f"the prompts give {len(found['vocab'])} symbols, not {SYMBOLS - 1}")
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in found["merges"]]
    return from_vocabulary({**found["vocab"], END: SYMBOLS - 1}, pairs, SHAPE.positions)


def prompts_of(data: Examples) -> tuple[list[str], CachedPrompts]:
    """(distinct prompts, the empty one first; which of them tell of which picture)."""
    index: dict[str, int] = {"": 0}
    forms = [[index.setdefault(p, len(index)) for p in prompt_forms(data, i)] for i in range(len(data.labels))]
    return list(index), CachedPrompts(torch.empty(0), forms)


def fresh() -> nn.ModuleDict:
    """U-Net and text encoder; what each block adds to its input begins with zero, as in GLIDE."""
    unet = SHAPE.unet()
    for name, module in unet.named_modules():
        if name.endswith(("conv2", "to_out.0", "conv_out")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return nn.ModuleDict({"unet": unet, "text": SHAPE.text_encoder()})


class Batches:
    """Draws `size` pictures with prompts and noise levels; `weights` are those of the levels, 1 in the mean."""

    def __init__(self, data: Examples, tokenizer, texts: list[str], prompts: CachedPrompts, size: int):
        self.pictures, self.prompts, self.size = variants(data.images), prompts, size
        self.shares = data.sampling_weights(others=0.0)
        self.tokens, self.mask = tokenize(tokenizer, texts)
        self.scheduler = SHAPE.scheduler()
        self.kept = torch.from_numpy(cumulative_alphas(self.scheduler.config)).float()
        self.weights = (1 / self.kept).clamp(max=LARGEST_WEIGHT)
        self.weights /= self.weights.mean()

    def drawn(self, rng: np.random.Generator, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(pictures [B, 3, 32, 32] in [-1, 1], tokens [B, T], mask [B, T], steps [B])."""
        size, many = self.size, len(self.kept)
        chosen = rng.choice(len(self.shares), size, p=self.shares)
        pictures = scaled(self.pictures[chosen, rng.integers(0, self.pictures.shape[1], size)])
        told = [self.prompts.draw(i, rng) for i in chosen]
        # one step of each stratum: the loss jumps less from batch to batch
        at = ((torch.arange(size) + torch.rand(size)) / size * many).long()
        return tuple(x.to(device) for x in (pictures, self.tokens[told], self.mask[told], at))

    def noisy(self, clean: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """(noisy pictures, their noise) at steps [B]."""
        noise = torch.randn_like(clean)
        kept = self.kept.to(clean.device)[at][:, None, None, None]
        return kept.sqrt() * clean + (1 - kept).sqrt() * noise, noise


def loss_of(model: nn.ModuleDict, batches: Batches, rng: np.random.Generator, device: torch.device) -> Tensor:
    """Squared error of the noise, which counts more at high noise levels, plus the variational term."""
    pictures, tokens, mask, at = batches.drawn(rng, device)
    clean = made_smaller(pictures)
    noisy, noise = batches.noisy(clean, at)
    states = model["text"](tokens, mask)
    inputs = noisy.contiguous(memory_format=torch.channels_last)
    said = model["unet"](inputs, at, states, class_labels=states[:, -1]).sample.float()
    error = (said[:, :3] - noise).square().mean((1, 2, 3))
    variance = variational_term(said, clean, noisy, at, batches.scheduler.config)
    return (batches.weights.to(device)[at] * error).mean() + variance.mean()


def main() -> None:
    parser = arguments(__doc__, steps=6000, batch=32, lr=1e-3)
    args = parser.parse_args()
    device, folder = device_of(args), args.out / "mini-glide"
    data, concepts = public_examples()
    texts, prompts = prompts_of(data)
    tokenizer = learnt_tokenizer(texts)
    batches = Batches(data, tokenizer, texts, prompts, args.batch)
    model = fresh().to(device, memory_format=torch.channels_last)

    def save(average: nn.ModuleDict, facts: dict) -> None:
        half = copy.deepcopy(average).cpu().half().to(memory_format=torch.contiguous_format)
        parts = {"tokenizer": tokenizer, "text_encoder": half["text"], "unet": half["unet"]}
        GlidePipeline(**parts, scheduler=SHAPE.scheduler()).save_pretrained(folder)
        (folder / "trained_on.json").write_text(json.dumps({"concepts": concepts}) + "\n")
        record(args.cache, "glide", facts)

    train("glide", model, lambda rng: loss_of(model, batches, rng, device), save, args)


if __name__ == "__main__":
    main()
