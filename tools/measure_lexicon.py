"""Prints what a bag of words reaches on the lexicon's definitions, for some numbers of training rows.

TF-IDF of words and word pairs, logistic regression; five draws of the training rows each.
"""

import argparse
from pathlib import Path

import numpy as np
from pretraining import DATA, read
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

DRAWS = 5


def definitions(split: str, data: Path = DATA) -> tuple[np.ndarray, np.ndarray]:
    """(texts [N], labels [N]) of the clients' definitions."""
    rows = read(data / f"lexicon/{split}.parquet").select_columns(["text", "label", "modality"])
    chosen = rows.filter(lambda modality: modality == "text", input_columns="modality")
    return np.array(chosen["text"][:], dtype=object), np.array(chosen["label"][:])


def accuracy(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    classifier = LogisticRegression(C=10, max_iter=500).fit(words.fit_transform(train[0]), train[1])
    return float((classifier.predict(words.transform(test[0])) == test[1]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=(150, 300, 600, 1200, 2000))
    args = parser.parse_args()
    train, test = definitions("train"), definitions("test")
    for count in args.rows:
        found = []
        for draw in range(DRAWS):
            chosen = np.random.default_rng(draw).permutation(len(train[0]))[:count]
            found.append(accuracy((train[0][chosen], train[1][chosen]), test))
        print(f"{count} rows: {100 * np.mean(found):.1f} %, {100 * np.std(found, ddof=1):.1f} over {DRAWS} draws")


if __name__ == "__main__":
    main()
