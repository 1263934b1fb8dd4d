"""Pre-trains a small BERT, DistilBERT and RoBERTa on WordNet's public definitions (build_lexicon lists them).

Masked words are learnt as usual. The first token learns, in place of next-sentence prediction, the lexicographer file
of the definition's synset (noun.animal, noun.food, verb.motion, ...): the clients' classifiers read that token.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from dataset_files import PRETRAINING_TEXTS
from pretraining import DATA
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from torch import nn
from training_loop import arguments, device_of, record, train
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
)
from wordnet import LEXICOGRAPHER_FILES

VOCABULARY = 4000
LONGEST = 32  # tokens, as clients.tokens
WIDTH, LAYERS, HEADS = 128, 2, 4
MASKED = 0.15
NAMED = 0.3  # share of definitions that are told with their word: "bear: massive plantigrade ..."
KINDS = ("bert", "distilbert", "roberta")
BERT_SIGNS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SIGNS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@dataclass
class Definitions:
    """N definitions with the word they define and the number of their lexicographer file."""

    texts: list[str]
    words: list[str]
    files: np.ndarray

    def told(self, n: int, rng: np.random.Generator) -> str:
        return f"{self.words[n]}: {self.texts[n]}" if rng.random() < NAMED else self.texts[n]


def definitions(cache: Path) -> Definitions:
    rows = json.loads((cache / PRETRAINING_TEXTS).read_text())
    return Definitions([r["text"] for r in rows], [r["word"] for r in rows], np.array([r["file"] for r in rows]))


def learnt_tokenizer(kind: str, data: Definitions, folder: Path) -> PreTrainedTokenizerBase:
    """Learnt once and kept: a resumed model needs its own."""
    kept = RobertaTokenizer if kind == "roberta" else BertTokenizer
    if not (folder / "tokenizer_config.json").exists():
        said = [*data.texts, *data.words]
        if kind == "roberta":
            pieces = ByteLevelBPETokenizer(add_prefix_space=False)
            pieces.train_from_iterator(said, VOCABULARY, special_tokens=ROBERTA_SIGNS, show_progress=False)
            model = json.loads(pieces.to_str())["model"]
            merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
            tokenizer = RobertaTokenizer(vocab=model["vocab"], merges=merges, model_max_length=LONGEST)
        else:
            pieces = BertWordPieceTokenizer(lowercase=True)
            pieces.train_from_iterator(said, VOCABULARY, special_tokens=BERT_SIGNS, show_progress=False)
            tokenizer = BertTokenizer(vocab=pieces.get_vocab(), model_max_length=LONGEST)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(folder)
    return kept.from_pretrained(folder)


def small_body(kind: str, pad: int) -> PreTrainedModel:
    if kind == "distilbert":
        sizes = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 2 * WIDTH}
        return DistilBertModel(
            DistilBertConfig(vocab_size=VOCABULARY, max_position_embeddings=LONGEST, pad_token_id=pad, **sizes)
        )
    config, model = (RobertaConfig, RobertaModel) if kind == "roberta" else (BertConfig, BertModel)
    return model(
        config(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=2 * WIDTH,
            max_position_embeddings=LONGEST + pad + 1,  # RoBERTa counts positions from pad + 1
            pad_token_id=pad,
        ),
        add_pooling_layer=False,
    )


class Learner(nn.Module):
    """A body with the two heads that it learns by; word scores use the embedding's own weights."""

    def __init__(self, body: PreTrainedModel):
        super().__init__()
        self.body = body
        self.transform = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH))
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))
        self.files = nn.Linear(WIDTH, LEXICOGRAPHER_FILES)

    def forward(self, ids_BT: torch.Tensor, pad: int, asked_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(scores of the M asked tokens [M, V], scores of the files [B, 45])."""
        x_BTH = self.body(input_ids=ids_BT, attention_mask=(ids_BT != pad).long()).last_hidden_state
        words = F.linear(self.transform(x_BTH[asked_BT]), self.body.get_input_embeddings().weight, self.bias)
        return words, self.files(x_BTH[:, 0])


def masked(ids_BT: torch.Tensor, tokenizer: PreTrainedTokenizerBase, rng: np.random.Generator):
    """(ids with masks, which were chosen): 80 % of the chosen become the mask, 10 % any token (Devlin et al. 2019)."""
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    chance = torch.from_numpy(rng.random(ids_BT.shape))
    chosen = (chance < MASKED) & ~torch.isin(ids_BT, special)
    form = torch.from_numpy(rng.random(ids_BT.shape))
    other = torch.from_numpy(rng.integers(len(special), VOCABULARY, ids_BT.shape))
    ids = torch.where(chosen & (form < 0.8), tokenizer.mask_token_id, ids_BT)
    return torch.where(chosen & (form > 0.9), other, ids), chosen


def train_backbone(kind: str, data: Definitions, args, device: torch.device) -> None:
    tokenizer = learnt_tokenizer(kind, data, args.cache / "checkpoints" / f"{kind}-tokenizer")
    learner = Learner(small_body(kind, tokenizer.pad_token_id)).to(device)

    def loss_of(rng: np.random.Generator) -> torch.Tensor:
        chosen = rng.integers(0, len(data.texts), args.batch)
        said = [data.told(n, rng) for n in chosen]
        ids = tokenizer(said, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt").input_ids
        shown, asked = masked(ids, tokenizer, rng)
        words, files = learner(shown.to(device), tokenizer.pad_token_id, asked.to(device))
        told = F.cross_entropy(files, torch.from_numpy(data.files[chosen]).to(device))
        return F.cross_entropy(words, ids[asked].to(device)) + told

    def save(average: Learner, facts: dict) -> None:
        folder = args.out / "backbones" / kind
        half = small_body(kind, tokenizer.pad_token_id).half()
        half.load_state_dict(average.body.state_dict())
        half.save_pretrained(folder)
        learnt_tokenizer(kind, data, args.cache / "checkpoints" / f"{kind}-tokenizer").save_pretrained(folder)
        left_out = json.loads((DATA / "lexicon/pretraining.json").read_text())["synsets_left_out"]
        (folder / "trained_on.json").write_text(json.dumps({"synsets_left_out": left_out}) + "\n")
        record(args.cache, f"backbone-{kind}", facts)

    train(f"backbone-{kind}", learner, loss_of, save, args)


def main() -> None:
    parser = arguments(__doc__, steps=6000, batch=128, lr=1e-3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    args = parser.parse_args()
    device = device_of(args)
    data = definitions(args.cache)
    for kind in args.kinds:
        train_backbone(kind, data, args, device)


if __name__ == "__main__":
    main()
