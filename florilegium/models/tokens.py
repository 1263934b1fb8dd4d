"""Text to token ids: a `tokenizers` file for the small models (pad id 0), a hub tokenizer for pre-trained ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from florilegium import assets, hub
from florilegium.config.errors import first_line
from florilegium.data.toy import WORDS
from florilegium.models.pretrained import longest_text, placed

log = logging.getLogger(__name__)


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
    """A checkpoint's own tokenizer. Where the padding is also the end of a text, or there is none, it is -1 here."""
    from transformers import AutoTokenizer

    try:
        reader = AutoTokenizer.from_pretrained(placed(name))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"{name} has no tokenizer that can be read: {first_line(error)}") from error
    most = longest_text(name, longest, reader)
    if most < longest:
        log.warning("clients.tokens is %d, but %s reads %d tokens; longer texts are cut", longest, name, most)
    pad = reader.pad_token_id
    return Vocabulary(
        lambda text: reader(text, truncation=True, max_length=most)["input_ids"],
        len(reader),
        -1 if pad is None or pad == reader.eos_token_id else int(pad),
        most,
    )


@lru_cache(maxsize=4)
def clip_vocabulary(place: str, longest: int) -> Vocabulary:
    """The tokenizer of an open_clip directory or hub id; ids are one higher, so that 0 is free to mean padding."""
    import open_clip

    if Path(place).is_absolute() and not Path(place, "open_clip_config.json").is_file():
        raise ValueError(f"{place} is no directory of an open_clip model")
    try:
        reader: Any = open_clip.get_tokenizer(open_clip_name(place))
    except Exception as error:  # a missing file, another layout, no network: each has its own class
        raise ValueError(f"{place} has no tokenizer that open_clip can read: {first_line(error)}") from error
    inner = getattr(reader, "tokenizer", None)
    most = min(longest, int(reader.context_length))

    def split(text: str) -> list[int]:
        if inner is not None:
            ids = inner(reader.clean_fn(text), truncation=True, max_length=most)["input_ids"]
        else:
            ids = [reader.sot_token_id, *reader.encode(text)[: most - 2], reader.eot_token_id]
        return [i + 1 for i in ids]

    return Vocabulary(split, (len(inner) if inner is not None else reader.vocab_size) + 1, 0, most)


def open_clip_name(place: str) -> str:
    """How open_clip names a directory, or a repository of a hub."""
    found = assets.located(place)
    hub.open_or_offline(found)
    return f"local-dir:{found}" if Path(found).is_dir() else f"hf-hub:{found}"


def _toy() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[UNK]", "[CLS]", *WORDS]
    reader = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    reader.pre_tokenizer = pre_tokenizers.Whitespace()
    reader.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    return reader
