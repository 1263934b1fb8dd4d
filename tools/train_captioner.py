"""Trains the mini BLIP captioner on the public pictures; needs train_clip, whose picture tower teaches its own."""

from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from augmentation import SIDE, augmented, cut_out
from pretraining import Examples, pretraining_examples, scaled
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

CONTEXT = 24
PAD, UNKNOWN, START, END, MASK = range(5)
DISTILLATION = 2.0  # weight of agreeing with the mini CLIP's picture embedding


def learnt_tokenizer(data: Examples) -> BertTokenizer:
    pieces = BertWordPieceTokenizer(lowercase=True)
    said = sorted({data.caption(i) for i in range(len(data.labels))})
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


class Student(nn.Module):
    """The captioner and, while training only, a head that imitates the mini CLIP's picture embedding."""

    def __init__(self, captioner: BlipForConditionalGeneration, width: int):
        super().__init__()
        self.captioner, self.imitation = captioner, nn.Linear(128, width)

    def forward(self, images: torch.Tensor, tokens: torch.Tensor, teacher_BD: torch.Tensor) -> torch.Tensor:
        labels = tokens.masked_fill(tokens == PAD, -100)
        said = self.captioner(
            pixel_values=images, input_ids=tokens, attention_mask=(tokens != PAD).long(), labels=labels
        )
        imitated_BD = F.normalize(self.imitation(said.last_hidden_state.mean(1)), dim=-1)
        return said.loss + DISTILLATION * (1 - (imitated_BD * teacher_BD).sum(1)).mean()


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
    args = arguments(__doc__, steps=2500, batch=96, lr=1e-3).parse_args()
    device = device_of(args)
    data = pretraining_examples(args.cache)
    tokenizer = kept_tokenizer(data, args.cache)
    teacher = open_clip.create_model(f"local-dir:{args.out / 'mini-clip'}").to(device).eval()
    student = Student(mini_blip(len(tokenizer)), teacher.visual.output_dim).to(device)
    weights = data.sampling_weights(others=0.2)
    weights[data.labels >= len(data.names) - 10] *= 0.4
    weights /= weights.sum()

    def loss_of(rng: np.random.Generator) -> torch.Tensor:
        chosen = rng.choice(len(weights), args.batch, p=weights)
        said = [data.caption(i) for i in chosen]
        tokens = tokenizer(said, padding=True, truncation=True, return_tensors="pt").input_ids.to(device)
        images = cut_out(augmented(scaled(data.images[chosen]), rng), rng).to(device)
        with torch.no_grad():
            large = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)
            teacher_BD = teacher.encode_image(large, normalize=True)
        return student(images, tokens, teacher_BD)

    def save(average: Student, facts: dict) -> None:
        export(average.captioner, tokenizer, args.out / "mini-captioner")
        record(args.cache, "captioner", facts)

    train("captioner", student, loss_of, save, args)


if __name__ == "__main__":
    main()
