"""The data sets' columns, and their files: parquet with embedded PNG or WebP bytes, as `datasets` reads them."""

from pathlib import Path

import datasets

PRETRAINING_EMOJI = "pretraining_emoji.parquet"
PRETRAINING_FASHION = "pretraining_fashion.parquet"
PRETRAINING_LEXICON = "pretraining_lexicon.parquet"
JUDGE_LEXICON = "judge_lexicon.parquet"
PRETRAINING_TEXTS = "pretraining_texts.json"


def features(described: bool = True, modality: bool = False) -> datasets.Features:
    """Columns of emoji; `described=False` leaves out what only emoji have. label is a plain integer: -1 is 'other'.

    `modality` adds the column that tells texts without an image (`text`) from the rest (`pair`).
    """
    columns = {"id": datasets.Value("int32"), "image": datasets.Image(mode="RGB"), "text": datasets.Value("string")}
    if described:
        columns["tags"] = datasets.List(datasets.Value("string"))
    columns["label"] = datasets.Value("int32")
    if described:
        columns |= {"concept": datasets.Value("string"), "style": datasets.Value("string")}
    columns["part"] = datasets.Value("string")
    return datasets.Features(columns | ({"modality": datasets.Value("string")} if modality else {}))


def write_parquet(rows: list[dict], columns: datasets.Features, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: [row[name] for row in rows] for name in columns}
    datasets.Dataset.from_dict(kept, features=columns).to_parquet(path)
