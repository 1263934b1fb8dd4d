"""Pre-trains a small ResNet, ViT and BEiT on the public pictures (build_lexicon lists them).

A picture is to find its own name among those of all public concepts, as the mini CLIP's text tower embeds them: names
of like things lie close together, so the backbone learns what the pictures of unlike drawers have in common.
"""

import json

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from augmentation import augmented, cut_out
from dataset_files import PRETRAINING_LEXICON
from pretraining import pixels, read
from torch import nn
from training_loop import arguments, device_of, record, train
from transformers import ViTImageProcessor

from florilegium.models.image import ImageBody
from florilegium.protocol.pixels import scaled

SIDE = 32
TRANSFORMER = {
    "input_size": SIDE,
    "patch_size": 4,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_dropout_prob": 0.1,
}
# the sizes of conf/architectures/small.yaml, so that a client may start from scratch with the same net
SIZES = {
    "resnet": {"input_size": 64, "embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 1, 1],
               "layer_type": "basic"},
    "vit": TRANSFORMER,
    "beit": TRANSFORMER | {"use_shared_relative_position_bias": True},
}  # fmt: skip
TEMPERATURE = 0.07


class Learner(nn.Module):
    """A body and its projection into the text tower's space."""

    def __init__(self, kind: str, width: int):
        super().__init__()
        self.body = ImageBody(kind, SIZES[kind])
        self.project = nn.Linear(self.body.hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float [B, 3, S, S] in [-1, 1] -> unit vectors [B, D]."""
        return F.normalize(self.project(self.body(x)), dim=-1)


@torch.no_grad()
def named(texts: list[str], args) -> torch.Tensor:
    """C names -> unit vectors [C, D] of the mini CLIP."""
    source = f"local-dir:{args.clip}"
    clip = open_clip.create_model(source, precision="fp32").eval()
    tokens = open_clip.get_tokenizer(source)([f"a picture of a {text}" for text in texts])
    return torch.cat([clip.encode_text(batch, normalize=True) for batch in tokens.split(256)])


def train_backbone(kind: str, args, device: torch.device) -> None:
    rows = read(args.cache / PRETRAINING_LEXICON)
    images, concepts = pixels(rows), sorted(set(rows["concept"]))
    number = {concept: n for n, concept in enumerate(concepts)}
    text = {concept: name for concept, name in zip(rows["concept"], rows["text"], strict=True)}
    own = torch.tensor([number[concept] for concept in rows["concept"]])
    names_CD = named([text[concept] for concept in concepts], args).to(device)
    learner = Learner(kind, names_CD.shape[1]).to(device)

    def loss_of(rng: np.random.Generator) -> torch.Tensor:
        chosen = torch.from_numpy(rng.integers(0, len(images), args.batch))
        shown = cut_out(augmented(scaled(images[chosen]), rng), rng).to(device)
        logits_BC = learner(shown).float() @ names_CD.T / TEMPERATURE
        return F.cross_entropy(logits_BC, own[chosen].to(device), label_smoothing=0.1)

    def save(average: Learner, facts: dict) -> None:
        folder = args.out / "backbones" / kind
        half = ImageBody(kind, SIZES[kind]).net.half()
        half.load_state_dict(average.body.net.state_dict())
        half.save_pretrained(folder)
        side = SIZES[kind]["input_size"]
        processor = ViTImageProcessor(size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        processor.save_pretrained(folder)
        (folder / "trained_on.json").write_text(json.dumps({"concepts": concepts}) + "\n")
        record(args.cache, f"backbone-{kind}", facts)

    train(f"backbone-{kind}", learner, loss_of, save, args)


def main() -> None:
    parser = arguments(__doc__, steps=4000, batch=96, lr=1e-3)
    parser.add_argument("--kinds", nargs="+", choices=tuple(SIZES), default=tuple(SIZES))
    parser.add_argument("--clip", default="assets/models/mini-clip")
    args = parser.parse_args()
    device = device_of(args)
    for kind in args.kinds:
        train_backbone(kind, args, device)


if __name__ == "__main__":
    main()
