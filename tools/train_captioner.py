"""Trains the mini BLIP captioner on the public pictures; needs train_clip, whose picture tower teaches its own.

The picture tower learns first, alone: to imitate the mini CLIP on mixed pictures, which it may meet without end. Then
tower and decoder learn to tell. The class is told before the concept ("a picture of a fruit, a red apple"): told after
it, a class would follow from a guessed concept.
"""

import copy
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from augmentation import augmented, cut_out, enlarged, mixed
from pretraining import Examples, pretraining_examples, record_concepts, template
from tokenizers import BertWordPieceTokenizer
from torch import nn
from training_loop import arguments, device_of, record, train
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
    GenerationConfig,
)

from florilegium.protocol.pixels import scaled

CONTEXT = 24
PAD, UNKNOWN, START, END, MASK = range(5)
DISTILLATION = 2.0  # weight of the distance to the mini CLIP's picture embedding


def learnt_tokenizer(data: Examples) -> BertTokenizer:
    pieces = BertWordPieceTokenizer(lowercase=True)
    said = sorted({data.told(i) for i in range(len(data.labels))})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces.train_from_iterator(said, vocab_size=1500, min_frequency=1, special_tokens=special, show_progress=False)
    return BertTokenizer(vocab=pieces.get_vocab(), model_max_length=CONTEXT)


def kept_tokenizer(data: Examples, cache: Path) -> BertTokenizer:
    """Learnt once and kept: ties between pieces fall differently from run to run, and a resumed model needs its own."""
    folder = cache / "checkpoints" / "captioner-tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        learnt_tokenizer(data).save_pretrained(folder)
    return BertTokenizer.from_pretrained(folder)


def mini_blip(vocabulary: int) -> BlipForConditionalGeneration:
    shape = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 384}
    text = BlipTextConfig(
        **shape,
        vocab_size=vocabulary,
        encoder_hidden_size=128,
        num_hidden_layers=2,
        max_position_embeddings=CONTEXT + 8,
        bos_token_id=START,
        eos_token_id=END,
        sep_token_id=END,
        pad_token_id=PAD,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.0,
        label_smoothing=0.05,
    )
    vision = BlipVisionConfig(**shape, num_hidden_layers=4, image_size=32, patch_size=4)
    config = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128)
    return BlipForConditionalGeneration(config)


class Tower(nn.Module):
    """The captioner's picture tower and, while training only, a head that puts it into the mini CLIP's space."""

    def __init__(self, vision: nn.Module, width: int):
        super().__init__()
        self.vision, self.imitation = vision, nn.Linear(128, width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Unit embeddings, B x D."""
        return self.imitated(self.vision(pixel_values=images).last_hidden_state)

    def imitated(self, hidden_BTW: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.imitation(hidden_BTW.mean(1)), dim=-1)


class Teacher(nn.Module):
    """The mini CLIP: its embedding of a picture and what it thinks of the classes are both imitated."""

    def __init__(self, source: str, names: list[str], device: torch.device):
        super().__init__()
        self.clip = open_clip.create_model(source).to(device).eval().requires_grad_(False)
        with torch.no_grad():
            prompts = open_clip.get_tokenizer(source)([template(name) for name in names]).to(device)
            self.classes_CD = self.clip.encode_text(prompts, normalize=True)
        self.scale = self.clip.logit_scale.exp().clamp(max=50).item()

    def loss(self, student_BD: torch.Tensor, images: torch.Tensor, target_BC: torch.Tensor) -> torch.Tensor:
        """Distance to the teacher's embedding, to its posterior, and to the labels; rows of target_BC sum to 1 or 0."""
        with torch.no_grad():
            teacher_BD = self.clip.encode_image(enlarged(images), normalize=True)
            posterior_BC = (self.scale * teacher_BD @ self.classes_CD.T).softmax(-1)
        said_BC = (self.scale * student_BD @ self.classes_CD.T).log_softmax(-1)
        far = 1 - (student_BD * teacher_BD).sum(1)
        unlike = -(posterior_BC * said_BC).sum(1)
        wrong = -(target_BC * said_BC).sum(1)
        return (DISTILLATION * far + unlike + 0.5 * wrong).mean()


def export(captioner: BlipForConditionalGeneration, tokenizer: BertTokenizer, folder: Path) -> None:
    half = mini_blip(len(tokenizer)).half()
    half.load_state_dict(captioner.state_dict())
    half.generation_config = GenerationConfig(
        bos_token_id=START, eos_token_id=END, pad_token_id=PAD, max_new_tokens=CONTEXT, do_sample=False
    )
    half.save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    BlipProcessor(images, tokenizer).save_pretrained(folder)


def main() -> None:
    parser = arguments(__doc__, steps=2500, batch=96, lr=1e-3)
    parser.add_argument("--picture-steps", type=int, default=3500, help="steps of the picture tower alone, before")
    args = parser.parse_args()
    device = device_of(args)
    data = pretraining_examples(args.cache)
    tokenizer = kept_tokenizer(data, args.cache)
    teacher = Teacher(f"local-dir:{args.out / 'mini-clip'}", data.names, device)
    captioner = mini_blip(len(tokenizer)).to(device)
    tower = Tower(captioner.vision_model, teacher.classes_CD.shape[1]).to(device)
    weights = data.sampling_weights(others=0.2)
    weights[data.labels >= len(data.names) - 10] *= 0.4
    weights /= weights.sum()
    one_hot = F.one_hot(torch.from_numpy(data.labels).clamp(min=0), len(data.names)).float()
    one_hot[data.labels < 0] = 0

    def views(chosen: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        return cut_out(augmented(scaled(data.images[chosen]), rng), rng)

    def seen(rng: np.random.Generator) -> torch.Tensor:
        chosen = rng.choice(len(weights), args.batch, p=weights)
        images, target_BC = mixed(views(chosen, rng), one_hot[chosen], rng)
        images = images.to(device)
        return teacher.loss(tower(images), images, target_BC.to(device))

    def said(rng: np.random.Generator) -> torch.Tensor:
        chosen = rng.choice(len(weights), args.batch, p=weights)
        told = [data.told(i) for i in chosen]
        tokens = tokenizer(told, padding=True, truncation=True, return_tensors="pt").input_ids.to(device)
        labels = tokens.masked_fill(tokens == PAD, -100)
        images = views(chosen, rng).to(device)
        out = captioner(pixel_values=images, input_ids=tokens, attention_mask=(tokens != PAD).long(), labels=labels)
        return out.loss + teacher.loss(tower.imitated(out.last_hidden_state), images, one_hot[chosen].to(device))

    def keep(average: Tower, facts: dict) -> None:
        record(args.cache, "captioner-tower", facts)
        looked.load_state_dict(average.state_dict())

    def save(average: nn.ModuleList, facts: dict) -> None:
        export(average[0], tokenizer, args.out / "mini-captioner")
        record_concepts(args.out / "mini-captioner", args.cache)
        record(args.cache, "captioner", facts)

    steps, args.steps, looked = args.steps, args.picture_steps, copy.deepcopy(tower)
    train("captioner-tower", tower, seen, keep, args)
    tower.load_state_dict(looked.state_dict())
    args.steps = steps
    train("captioner", nn.ModuleList([captioner, tower]), said, save, args)


if __name__ == "__main__":
    main()
