"""Text to token ids: a `tokenizers` file for the small models (pad id 0), a hub tokenizer for pre-trained ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from florilegium import assets
from florilegium.data.toy import WORDS


@dataclass(frozen=True)
class Vocabulary:
    """How a text model reads: `split` gives a text's ids; at most `longest` of them are kept."""

    split: Callable[[str], list[int]]
    size: int
    pad: int
    longest: int

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """N texts -> int64 [N, T], padded to the longest of them."""
        rows = [self.split(text)[: self.longest] or [self.pad] for text in texts]
        out = torch.full((len(rows), max(map(len, rows), default=1)), self.pad, dtype=torch.int64)
        for n, row in enumerate(rows):
            out[n, : len(row)] = torch.tensor(row)
        return out


@lru_cache(maxsize=8)
def open_vocabulary(tokenizer: str | None, longest: int, pretrained: str | None = None) -> Vocabulary:
    """`pretrained` brings its own tokenizer; otherwise `tokenizer` is "toy", a tokenizer.json or its directory, or
    None for the embedded mini CLIP's. AssetError or ValueError (one line) when it cannot be read."""
    if pretrained:
        return _pretrained(pretrained, longest)
    if tokenizer == "toy":
        reader = _toy()
    else:
        from tokenizers import Tokenizer

        place = Path(tokenizer) if tokenizer else assets.path("models", "mini-clip")
        file = place / "tokenizer.json" if place.is_dir() else place
        try:
            reader = Tokenizer.from_file(str(file))
        except Exception as error:  # the Rust side raises bare Exception
            raise ValueError(f"clients.tokenizer: {file} cannot be read: {str(error).splitlines()[0]}") from error
    reader.no_padding()
    reader.no_truncation()
    # ids move up by one, so that 0 is free to mean padding and nothing else
    return Vocabulary(lambda text: [i + 1 for i in reader.encode(text).ids], reader.get_vocab_size() + 1, 0, longest)


def _pretrained(name: str, longest: int) -> Vocabulary:
    from transformers import AutoTokenizer

    reader = AutoTokenizer.from_pretrained(assets.located(name, bare=True))
    return Vocabulary(
        lambda text: reader(text, truncation=True, max_length=longest)["input_ids"],
        len(reader),
        int(reader.pad_token_id),
        longest,
    )


def _toy() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[UNK]", "[CLS]", *WORDS]
    reader = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    reader.pre_tokenizer = pre_tokenizers.Whitespace()
    reader.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    return reader
