"""Data sets and partitions: facts that hold for any seed, and one-line errors that name file and row."""

import hashlib
import io
import json

import datasets
import pytest
import torch
from PIL import Image

from florilegium import preflight
from florilegium.config import composition
from florilegium.config.data import DataSettings, PartitionSettings
from florilegium.data import toy
from florilegium.data.datasets import DataError, held_out, modality_rows, open_dataset, read_rows
from florilegium.data.partition import partition


def png(colour=(255, 0, 0), side=8):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder, rows=None, split="train", **changes):
    """A small data set in the embedded format; `changes` replace columns of the split's rows."""
    folder.mkdir(exist_ok=True)
    named = [{"name": "apple"}, {"name": "scissors", "article": ""}]
    if max(changes.get("label", [0])) == 3:  # as many classes as the toy federation
        named = [{"name": name} for name in toy.CLASSES]
    (folder / "classes.json").write_text(json.dumps(named))
    for k, name in enumerate(("train", "validation", "test")):
        table = {
            "id": [10 * k + n for n in range(4)],
            "image": [{"bytes": png(), "path": None}] * 4,
            "text": ["apple", "apple", "scissors", "scissors"],
            "label": [0, 0, 1, 1],
            "concept": ["a", "a", "b", "c"],
            "part": ["private", "public", "private", "private"],
        }
        table |= changes if name == split else {}
        dataset = datasets.Dataset.from_dict(table).cast_column("image", datasets.Image(decode=False))
        dataset.to_parquet(str(folder / f"{name}.parquet"))
    return DataSettings(name=folder.name, path=str(folder), image_size=4, prompt=None)


# -- data sets ---------------------------------------------------------------------------------------------------------


def test_prompts_have_the_right_article():
    data = {"name": "toy", "image_size": 16, "prompt": "One {article} {name}!"}
    classes = open_dataset(DataSettings(**data)).classes
    assert classes.prompt(0) == "One a disc!" and list(classes) == ["disc", "square", "triangle", "cross"]


def test_an_article_of_ones_own_and_images_resized(tmp_path):
    data = write(tmp_path / "own")
    splits = open_dataset(data)
    assert [splits.prompt(c) for c in range(2)] == ["A picture of an apple.", "A picture of scissors."]
    rows = held_out(data, "test", "image")
    assert rows.ids.tolist() == [20, 22, 23] and rows.labels.tolist() == [0, 1, 1]  # public rows are nobody's
    assert rows.images.shape == (3, 3, 4, 4) and rows.images[0, :, 0, 0].tolist() == [255, 0, 0]


def test_a_text_stands_once_for_all_styles_of_its_concept(tmp_path):
    data = write(tmp_path / "own", part=["private"] * 4)
    rows = modality_rows(open_dataset(data).private("train"), "text")
    assert rows["id"][:] == [0, 2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": [0, 0, 1, 2]}, r"train.parquet, row 3 \(id 3\): label 2 of 2 classes"),
        ({"id": [1, 1, 2, 3]}, "train.parquet has the same id on two rows"),
    ],
)
def test_a_bad_row_is_named(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        open_dataset(write(tmp_path / "own", **changes))


def test_a_corrupt_image_names_file_and_id(tmp_path):
    images = [{"bytes": png(), "path": None}] * 2 + [{"bytes": png()[:40], "path": None}] * 2
    splits = open_dataset(write(tmp_path / "own", image=images))
    with pytest.raises(DataError, match=r"own/train, id 2: the image cannot be read"):
        read_rows(splits.train, "image", 4, f"{splits.place}/train")


def test_a_torn_file_a_missing_column_and_bad_classes_are_named(tmp_path):
    data = write(tmp_path / "own")
    datasets.Dataset.from_dict({"id": [1], "label": [0], "text": ["x"]}).to_parquet(str(tmp_path / "own/test.parquet"))
    with pytest.raises(DataError, match="test.parquet has no column 'image'; it has id, label, text"):
        open_dataset(data)
    (tmp_path / "own/test.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DataError, match="test.parquet cannot be read"):
        open_dataset(data)
    (tmp_path / "own/classes.json").write_text('["apple"]')
    with pytest.raises(DataError, match="classes.json should be a list of"):
        open_dataset(data)


def test_embedded_emoji_keep_concepts_apart():
    splits = open_dataset(composition.compose(["data=emoji"]).data)
    concepts = [set(getattr(splits, split)["concept"][:]) for split in ("train", "validation", "test")]
    assert not concepts[0] & concepts[1] and not concepts[0] & concepts[2] and not concepts[1] & concepts[2]
    ids = [i for split in ("train", "validation", "test") for i in getattr(splits, split)["id"][:]]
    assert len(set(ids)) == len(ids) and len(splits.classes) == 24
    assert set(splits.private("test")["style"][:]) == {"twemoji", "openmoji", "fluent-flat", "emojione"}


def test_a_hub_set_gets_ids_texts_and_a_validation_split(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["Ankle_Boot", "bag"])})
    (tmp_path / "hub").mkdir()
    for split, count in (("train", 20), ("test", 4)):
        table = {"image": [{"bytes": png(), "path": None}] * count, "label": [n % 2 for n in range(count)]}
        datasets.Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / "hub" / f"{split}.parquet"))
    data = DataSettings(name="fashion", hub=str(tmp_path / "hub"), image_size=8, prompt=None)
    splits = open_dataset(data)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [18, 2, 4]
    assert splits.classes.prompt(0) == "A picture of an ankle boot." and splits.test["id"][:] == [20, 21, 22, 23]
    assert held_out(data, "test", "image").images.shape == (4, 3, 8, 8)
    data.hub = str(tmp_path / "nowhere")
    with pytest.raises(DataError, match="data.hub: .*nowhere cannot be used"):
        open_dataset(data)


# -- partitions --------------------------------------------------------------------------------------------------------


def test_partition_is_disjoint_covers_and_is_seeded(toy_conf):
    conf = toy_conf("clients.partition.min_samples=5")
    one = partition(conf)
    rows = [set(client["rows"]) for client in one["clients"]]
    assert sum(map(len, rows)) == len(set.union(*rows)) == 160  # every concept is one row here
    assert all(len(r) >= 5 for r in rows) and [c["client"] for c in one["clients"]] == [0, 1, 2, 3]
    assert all(sum(c["classes"].values()) == len(c["rows"]) for c in one["clients"])
    assert partition(conf) == one and json.loads(json.dumps(one)) == one
    conf.seed = 1
    assert partition(conf)["hash"] != one["hash"]


def test_modalities_share_no_concept_and_halves_are_stratified(toy_conf):
    for seed in range(3):
        clients = partition(toy_conf(f"seed={seed}", "data=emoji"))["clients"]
        train = open_dataset(toy_conf("data=emoji").data).train
        concept = dict(zip(train["id"][:], train["concept"][:], strict=True))
        seen = {m: {concept[i] for c in clients if c["modality"] == m for i in c["rows"]} for m in ("image", "text")}
        assert not seen["image"] & seen["text"]
        texts = [i for c in clients if c["modality"] == "text" for i in c["rows"]]
        assert len({concept[i] for i in texts}) == len(texts)  # one row a concept
        assert 0.4 < len(seen["image"]) / (len(seen["image"]) + len(seen["text"])) < 0.6


def test_one_modality_takes_everything(toy_conf):
    clients = partition(toy_conf("clients=image", "clients.partition.min_samples=5"))["clients"]
    assert sum(len(c["rows"]) for c in clients) == 160


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({"name": "iid"}, lambda c: max(c) - min(c) <= 8),
        ({"name": "pathological", "classes_per_client": 2}, lambda c: sum(n > 0 for n in c) == 2),
        ({"name": "shard", "shards_per_client": 1}, lambda c: sum(n > 0 for n in c) <= 3),
        ({"name": "natural", "by": "style", "min_samples": 2}, lambda c: sum(c) > 0),
        ({"name": "dirichlet", "alpha": 1000.0}, lambda c: max(c) - min(c) <= 6),
    ],
)
@pytest.mark.filterwarnings("ignore:no .* client has a row")
def test_other_partitions(toy_conf, given, fact):
    conf = toy_conf(*(f"clients.partition.{k}={v}" for k, v in given.items()))
    for client in partition(conf)["clients"]:
        assert fact(list(client["classes"].values())), client["classes"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["min_samples=50"], "clients.partition.min_samples: there are not 50 rows for each of 2 image clients"),
        (["min_samples=40"], "clients.partition: cannot deal 40 rows for each of 2 image clients"),
        (["name=natural", "by=weather"], "clients.partition.by: the data have no column 'weather'"),
        (["name=sorted"], "clients.partition: name must be one of dirichlet, iid"),
        (["alpha=-1"], "clients.partition: alpha must lie between"),
    ],
)
def test_what_cannot_be_dealt_is_said_in_one_line(toy_conf, overrides, message):
    with pytest.raises(ValueError) as caught:
        partition(toy_conf(*(f"clients.partition.{o}" for o in overrides)))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_an_unknown_model_is_refused_before_anything_starts(toy_conf):
    with pytest.raises(ValueError, match=r"clients.mix\[0\]: no image model 'bert'; there are resnet, vit, beit"):
        preflight.validate(toy_conf("clients.mix=[{modality:image,model:bert}]", "timeouts.quorum=1"))


def test_a_class_that_nobody_has_warns(tmp_path, toy_conf):
    conf = toy_conf("clients=image", "clients.partition.classes_per_client=1", "clients.partition.name=pathological")
    conf.clients.mix = conf.clients.mix[:2]
    conf.clients.partition.min_samples = 2
    with pytest.warns(UserWarning, match="no image client has a row of"):
        partition(conf)


def test_partition_settings_defaults_are_those_of_conf():
    given = composition.compose(["clients=mixed"]).clients.partition
    assert given == PartitionSettings()


def test_toy_is_the_same_everywhere():
    rows = held_out(composition.compose(["data=toy"]).data, "test", "image")
    assert rows.images.shape == (64, 3, 16, 16) and torch.bincount(rows.labels).tolist() == [16] * 4
    assert hashlib.sha256(rows.images.numpy().tobytes()).hexdigest()[:8] == "8a2260fb"
