"""The committed lexicon: what clients hold or are judged on is in no public set and no pre-training."""

import json
import sys
from functools import cache
from pathlib import Path

import datasets
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))
from picture_hash import near_pairs, picture_hash  # noqa: E402

DATA = ROOT / "assets" / "data" / "lexicon"
MODELS = ROOT / "assets" / "models"


@cache
def rows(part):
    """All rows of a part, of the three splits, with their pictures' bytes."""
    found = []
    for split in ("train", "validation", "test"):
        table = datasets.Dataset.from_parquet(str(DATA / f"{split}.parquet"))
        table = table.cast_column("image", datasets.Image(decode=False))
        found += [row | {"split": split} for row in table if row["part"] == part]
    return found


@cache
def hashes(part):
    return [picture_hash(row["image"]["bytes"]) for row in rows(part) if row["image"]]


def pretraining():
    return json.loads((DATA / "pretraining.json").read_text())


def plain(text):
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def values(part, column):
    return {row[column] for row in rows(part)}


def texts(part):
    return {plain(row["text"]) for row in rows(part)}


def trained_on():
    """(model, what its training.json says) of every model that was trained for the lexicon."""
    return [(file.parent.relative_to(MODELS).as_posix(), json.loads(file.read_text()))
            for file in sorted(MODELS.rglob("trained_on.json"))]  # fmt: skip


def test_the_committed_files_hold_enough_of_every_kind():
    private = rows("private")
    assert sum(row["modality"] == "text" and row["split"] == "test" for row in private) > 1900
    assert sum(row["modality"] == "pair" and row["split"] == "test" for row in private) > 550
    assert {row["label"] for row in private} == set(range(12)) == {row["label"] for row in rows("public")}
    assert all((row["image"] is None) == (row["modality"] == "text") for row in private)


def test_ids_are_unique_over_all_splits_and_parts():
    ids = [row["id"] for part in ("private", "public") for row in rows(part)]
    assert len(ids) == len(set(ids))


def test_no_private_concept_or_text_is_public():
    assert not values("private", "concept") & values("public", "concept")
    assert not texts("private") & texts("public")


def test_no_private_concept_or_text_is_in_the_list_of_pretraining():
    listed = pretraining()
    assert not values("private", "concept") & set(listed["concepts"])
    assert not texts("private") & {plain(text) for text in listed["texts"]}
    synsets = {c.removeprefix("wordnet:") for c in values("private", "concept") if c.startswith("wordnet:")}
    assert synsets and synsets <= set(listed["synsets_left_out"])


def test_no_private_picture_is_nearly_a_public_one():
    own, listed = hashes("private"), [int(h, 16) for h in pretraining()["pictures"]]
    assert len(own) > 1200
    for public in (hashes("public"), listed):
        left, right = near_pairs(own, public)
        assert not len(left), f"{len(left)} pairs, the first: {own[left[0]]:064x} {public[right[0]]:064x}"


def test_no_private_picture_is_in_two_splits():
    private = [row for row in rows("private") if row["image"]]
    by_split = {s: [picture_hash(r["image"]["bytes"]) for r in private if r["split"] == s] for s in ("train", "test")}
    assert not len(near_pairs(by_split["train"], by_split["test"])[0])
    assert len({row["image"]["bytes"] for row in private}) == len(private)


def test_public_pairs_of_validation_and_test_are_in_no_pretraining():
    held = [row for row in rows("public") if row["split"] != "train"]
    assert held and not {row["concept"] for row in held} & set(pretraining()["concepts"])


@pytest.mark.parametrize("model, lists", trained_on(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_model_was_trained_on_public_concepts_only(model, lists):
    listed = pretraining()
    assert lists.keys() & {"concepts", "synsets_left_out"}, model
    assert set(lists.get("concepts", [])) <= set(listed["concepts"])
    if "synsets_left_out" in lists:
        assert set(lists["synsets_left_out"]) >= set(listed["synsets_left_out"])


def test_every_model_that_clients_or_the_server_start_from_says_what_it_was_trained_on():
    told = {model for model, _ in trained_on()}
    assert {"mini-sd", "mini-sd/vae", "mini-clip", "mini-captioner"} <= told
    assert {file.parent.relative_to(MODELS).as_posix() for file in (MODELS / "backbones").glob("*/config.json")} <= told


def test_a_near_copy_is_found():
    first = hashes("private")[0]
    assert len(near_pairs([first], [first ^ 0b111])[0]) == 1  # three bits of 256
    assert not len(near_pairs([first], [first ^ (2**20 - 1)])[0])  # twenty
