"""GLIDE's tokenizer: GPT-2's byte-pair vocabulary on lower-case text, without begin or end tokens.

Axes: N texts, T positions.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from florilegium.config.errors import first_line

END = "<|endoftext|>"


def byte_symbols() -> list[str]:
    """The 256 symbols that stand for bytes, in the order of their ids in GPT-2's vocabulary."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + n) for n in range(len(hidden))]


def from_merges(merges: Sequence[str], positions: int = 128) -> PreTrainedTokenizerFast:
    """A tokenizer from the lines of a merges file ("a b"): ids are bytes, then merges in order, then the end token."""
    pairs = [tuple(line.split()) for line in merges if line.strip() and not line.startswith("#version")]
    symbols = [*byte_symbols(), *(left + right for left, right in pairs), END]
    return from_vocabulary({symbol: n for n, symbol in enumerate(symbols)}, pairs, positions)


def from_vocabulary(
    vocabulary: Mapping[str, int], pairs: Sequence[tuple[str, ...]], positions: int = 128
) -> PreTrainedTokenizerFast:
    """A tokenizer from symbol -> id and pairs to merge. ValueError without the end token."""
    if END not in vocabulary:
        raise ValueError(f"the vocabulary has no end token {END}")
    model = Tokenizer(models.BPE(vocab=dict(vocabulary), merges=[(a, b) for a, b in pairs]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token=END,
        pad_token=END,
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
    )


def read_vocabulary(place: str | Path, positions: int = 128) -> PreTrainedTokenizerFast:
    """A tokenizer from a merges file (vocab.bpe, merges.txt; also .gz), a tokenizer directory or a hub id.

    ValueError, in one line, for a place that cannot be read.
    """
    path = Path(place).expanduser()
    try:
        if path.is_file():
            opened: Any = (
                gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
            )
            with opened as stream:
                return from_merges(stream.read().split("\n"), positions)
        from transformers import AutoTokenizer

        known = AutoTokenizer.from_pretrained(str(place))
        held = json.loads(known.backend_tokenizer.to_str())["model"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        line = first_line(error)
        raise ValueError(
            f"no byte-pair vocabulary can be read from {place} ({line[:200]}); without a hub, name the file vocab.bpe "
            "of the GLIDE code or merges.txt of GPT-2 by --vocabulary"
        ) from error
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in held["merges"]]
    return from_vocabulary(held["vocab"] | {END: known.eos_token_id}, pairs, positions)


def tokenize(tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(ids int64 [N, T], mask bool [N, T]) of lower-case texts, cut or filled to the tokenizer's length."""
    found = tokenizer(
        [text.lower() for text in texts],
        add_special_tokens=False,
        split_special_tokens=True,  # a literal end token in a text is text
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        padding_side="right",
    )
    ids, mask = found["input_ids"], found["attention_mask"]
    size = (len(texts), tokenizer.model_max_length)
    return torch.tensor(ids, dtype=torch.int64).view(size), torch.tensor(mask, dtype=torch.bool).view(size)
