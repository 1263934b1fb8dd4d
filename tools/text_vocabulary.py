"""The mini CLIP's byte-pair vocabulary, learnt from the public texts and the class names."""

import json
from pathlib import Path

from pretraining import Examples, template
from tokenizers import Tokenizer, models, trainers
from transformers import CLIPTokenizer

CONTEXT = 24  # tokens of a prompt, start and end included
VOCABULARY = 3000
START, END = "<|startoftext|>", "<|endoftext|>"


def corpus(data: Examples) -> list[str]:
    said = [template(name) for name in data.names] * 20
    for i, text in enumerate(data.texts):
        if data.labels[i] < len(data.names) - 10:  # fashion's 20,000 texts are its ten class names again
            said += [data.caption(i), text, " ".join(data.tags[i])]
    return said


def learnt_tokenizer(data: Examples) -> CLIPTokenizer:
    """Merges are learnt behind CLIP's own normaliser and word splitting, so CLIPTokenizer reads them unchanged."""
    clip = CLIPTokenizer()._tokenizer
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    # the 256 bytes, alone and at a word's end, keep any text tokenisable
    letters = sorted({c for c in bytes_to_letters()})
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 258, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus(data), trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learnt["merges"]]
    tokens = [*letters, *(f"{c}</w>" for c in letters)]
    tokens += [a + b for a, b in merges]
    tokens = [*dict.fromkeys(tokens), START, END]  # the end token last: open_clip pools at the largest id
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)


def kept_tokenizer(data: Examples, cache: Path) -> CLIPTokenizer:
    """Learnt once and kept: ties between merges fall differently from run to run, and a resumed model needs its own."""
    folder = cache / "checkpoints" / "clip-tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        save_tokenizer(learnt_tokenizer(data), folder)
    return CLIPTokenizer.from_pretrained(folder)


def bytes_to_letters() -> list[str]:
    """The 256 printable stand-ins of byte-level BPE."""
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel.alphabet()


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
