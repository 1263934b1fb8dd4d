"""Trains the mini CLIP on the public pairs; its text tower becomes the mini Stable Diffusion's text encoder.

Both towers learn together first; then the text tower is locked, so that the U-Net can start on its hidden states,
and the picture tower goes on alone (as in LiT, with the sides exchanged).
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from augmentation import SIDE, augmented, cut_out, enlarged
from open_clip.model import CLIP
from pretraining import Examples, pretraining_examples, record_concepts
from safetensors.torch import save_file
from text_tower import text_model
from text_vocabulary import CONTEXT, kept_tokenizer, save_tokenizer
from training_loop import arguments, device_of, halved, record, train

from florilegium.protocol.pixels import scaled

MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIDE, "layers": [1, 2, 2, 1], "width": 20, "head_width": 40},
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": 0,
        "hf_tokenizer_name": ".",
        "width": 128,
        "heads": 4,
        "layers": 3,
        "mlp_ratio": 4.0,
    },
}
PREPROCESS = {
    "size": [SIDE, SIDE],
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bilinear",
    "resize_mode": "squash",
    "fill_color": 0,
}


def contrastive_loss(image_BD: torch.Tensor, text_BD: torch.Tensor, scale: torch.Tensor, same_BB: torch.Tensor):
    """CLIP's symmetric loss where several pairs of a batch may say the same: the target is spread over them."""
    logits_BB = scale.clamp(max=50) * image_BD @ text_BD.T
    of_image_BB, of_text_BB = same_BB / same_BB.sum(1, keepdim=True), same_BB.T / same_BB.T.sum(1, keepdim=True)
    return (F.cross_entropy(logits_BB, of_image_BB) + F.cross_entropy(logits_BB.T, of_text_BB)) / 2


def fits(data: Examples, chosen: np.ndarray, said: list[str]) -> torch.Tensor:
    """same[i, j]: text j is true of picture i as well (the same text, or picture i's class prompt)."""
    prompts = [data.class_prompt(i) if data.labels[i] >= 0 else "" for i in chosen]
    same = np.array([[a == b or prompt == b for b in said] for a, prompt in zip(said, prompts, strict=True)])
    return torch.from_numpy(same.astype(np.float32))


def export(model: CLIP, config: dict, tokenizer, out: Path) -> None:
    state = halved(model.state_dict())
    folder = out / "mini-clip"
    save_tokenizer(tokenizer, folder)
    save_file(state, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}, indent=1) + "\n"
    )
    save_tokenizer(tokenizer, out / "mini-sd" / "tokenizer")
    text_model({k: v.float() for k, v in state.items()}, config["text_cfg"]).half().save_pretrained(
        out / "mini-sd" / "text_encoder"
    )


def text_parameters(model: CLIP) -> list[torch.nn.Parameter]:
    return [p for name, p in model.named_parameters() if not name.startswith("visual.")]


def main() -> None:
    parser = arguments(__doc__, steps=900, batch=128, lr=2e-3)
    parser.add_argument("--picture-steps", type=int, default=1200, help="steps of the picture tower alone; 0 for none")
    args = parser.parse_args()
    device = device_of(args)
    data = pretraining_examples(args.cache)
    tokenizer = kept_tokenizer(data, args.cache)
    config = {**MODEL, "text_cfg": {**MODEL["text_cfg"], "vocab_size": len(tokenizer)}}
    model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"]).to(device)
    weights = data.sampling_weights(others=0.3)
    fashion = data.labels >= len(data.names) - 10
    weights[fashion] *= 0.5  # ten easy classes need less than their share
    weights /= weights.sum()

    def loss_of(rng: np.random.Generator) -> torch.Tensor:
        chosen = rng.choice(len(weights), args.batch, p=weights)
        said = [data.prompts(i, rng) for i in chosen]
        tokens = tokenizer(said, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
        images = cut_out(augmented(enlarged(scaled(data.images[chosen])), rng), rng).to(device)
        image_BD = model.encode_image(images, normalize=True)
        text_BD = model.encode_text(tokens.input_ids.to(device), normalize=True)
        return contrastive_loss(image_BD, text_BD, model.logit_scale.exp(), fits(data, chosen, said).to(device))

    def save(average: CLIP, facts: dict) -> None:
        # read anew: a tokenizer that has padded once would also save how
        export(average, config, kept_tokenizer(data, args.cache), args.out)
        record_concepts(args.out / "mini-clip", args.cache)
        record(args.cache, "clip", facts)
        together.load_state_dict(average.state_dict())

    together = copy.deepcopy(model)
    train("clip", model, loss_of, save, args)
    if args.picture_steps:
        model.load_state_dict(together.state_dict())
        for parameter in text_parameters(model):
            parameter.requires_grad_(False)
        args.steps = args.picture_steps
        train("clip-picture", model, loss_of, save_picture(save, args.cache), args)


def save_picture(save: Callable, cache: Path) -> Callable:
    """Adds the second phase's steps and seconds to the first's."""
    first = json.loads((cache / "checkpoints/clip.json").read_text())
    first = first.get("together", first)
    return lambda average, facts: save(average, {**facts, "together": first})


if __name__ == "__main__":
    main()
