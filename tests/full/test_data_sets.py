"""Data sets in the layouts of a hub and of their authors, and splits that are too large for memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets as hf
import numpy as np
import pytest
import torch
from PIL import Image

from florilegium.config import composition
from florilegium.config.data import DataSettings, PublicSettings
from florilegium.data import stored_images
from florilegium.data.datasets import DataError, open_dataset, read_rows
from florilegium.data.decoding import in_order
from florilegium.data.hub import spoken
from florilegium.data.own.examination import batched
from florilegium.data.own.preparation import prepare
from florilegium.data.public import held_out_pairs, open_public
from florilegium.data.stored_images import Pictures, StoredImages, opened, picked
from tests.field.inputs import CLASSES, look, put
from tests.field.inputs import picture as picture_of
from tests.full.tiny_inputs import write_flowers, write_food

NAMES = ["apple_pie", "soup"]


def picture(n: int, side: int = 8) -> Image.Image:
    return Image.fromarray(np.full((side, side, 3), n % 256, dtype=np.uint8))


def hub(folder: Path, columns: tuple[str, str] = ("image", "label"), counts=None, **more) -> str:
    """A directory as `save_to_disk` leaves it; row n of a split is of grey n and class n % 2."""
    image, label = columns
    kinds = hf.Features({image: hf.Image(), label: hf.ClassLabel(names=NAMES)} | {k: v[1] for k, v in more.items()})
    splits = {}
    for split, count in (counts or {"train": 20, "test": 6}).items():
        cells = {image: [picture(n) for n in range(count)], label: [n % 2 for n in range(count)]}
        splits[split] = hf.Dataset.from_dict(cells | {k: v[0](count) for k, v in more.items()}, features=kinds)
    hf.DatasetDict(splits).save_to_disk(folder)
    return str(folder)


def test_a_labelled_set_is_read_by_its_own_names(tmp_path) -> None:
    """The last tenth of train is validation: 18 rows are left; ids go on over the splits."""
    splits = open_dataset(DataSettings(name="x", hub=hub(tmp_path / "a", ("img", "fine_label"))))
    assert [len(getattr(splits, s)) for s in ("train", "validation", "test")] == [18, 2, 6]
    assert list(splits.classes) == ["apple pie", "soup"] and splits.test["id"][:2] == [20, 21]
    rows = read_rows(splits.test, "image", 8, splits.place)
    assert rows.images[:, 0, 0, 0].tolist() == list(range(6)) and rows.labels.tolist() == [0, 1] * 3
    assert splits.train["text"][:2] == ["apple pie", "soup"]


def test_splits_columns_and_classes_can_be_named(tmp_path) -> None:
    place = hub(tmp_path / "a", ("photo", "dish"), {"train": 20, "valid": 4, "extra": 8})
    told = DataSettings(name="x", hub=place, hub_splits={"test": "extra"}, image_column="photo", label_column="dish")
    assert len(open_dataset(told).test) == 8 and len(open_dataset(told).validation) == 4
    alone = open_dataset(DataSettings(name="x", hub=place, classes=["pie", "broth"]))
    assert len(alone.test) == 4 and list(alone.classes) == ["pie", "broth"]  # valid stands for test


def test_captions_give_a_row_each_and_share_their_concept(tmp_path) -> None:
    texts = (lambda count: [[f"a {n}", f"b {n}"] for n in range(count)], hf.List(hf.Value("string")))
    splits = open_dataset(DataSettings(name="x", hub=hub(tmp_path / "a", caption=texts)))
    assert len(splits.test) == 12 and splits.test["text"][:3] == ["a 0", "b 0", "a 1"]
    assert splits.test["concept"][0] == splits.test["concept"][1] != splits.test["concept"][2]
    rows = read_rows(splits.test, "pair", 8, splits.place)
    assert rows.groups[:4].tolist() == [0, 0, 2, 2] and rows.images[3, 0, 0, 0] == 1


def test_texts_alone_are_for_text_clients(tmp_path) -> None:
    kinds = hf.Features({"text": hf.Value("string"), "label": hf.ClassLabel(names=["World", "Sports"])})
    cells = {"text": [f"news {n}" for n in range(20)], "label": [n % 2 for n in range(20)]}
    rows = hf.Dataset.from_dict(cells, features=kinds)
    hf.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "news")
    splits = open_dataset(DataSettings(name="x", hub=str(tmp_path / "news")))
    found = read_rows(splits.test, "text", 8, splits.place)
    assert found.texts[3] == "news 3" and list(splits.classes) == ["world", "sports"] and not len(found.images)
    assert set(splits.test["modality"][:]) == {"text"}


def test_domains_are_one_data_set(tmp_path) -> None:
    """The second part counts its classes the other way round; names decide."""
    one, two = hub(tmp_path / "one"), tmp_path / "two"
    kinds = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=NAMES[::-1])})
    cells = {"image": [picture(9)] * 10, "label": [0] * 10}
    hf.DatasetDict({"train": hf.Dataset.from_dict(cells, features=kinds)}).save_to_disk(two)
    splits = open_dataset(DataSettings(name="x", hub_domains={"mine": one, "theirs": str(two)}))
    assert set(splits.train["style"][:]) == {"mine", "theirs"}
    theirs = [
        label
        for label, style in zip(splits.train["label"][:], splits.train["style"][:], strict=True)
        if style == "theirs"
    ]
    assert set(theirs) == {1}  # soup
    assert len(set(splits.train["id"][:]) | set(splits.test["id"][:])) == len(splits.train) + len(splits.test)


def test_numbers_in_the_order_of_words_find_their_names(tmp_path) -> None:
    names = ["1", "10", "2", *map(str, range(3, 10))]
    kinds = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=names)})
    cells = {"image": [picture(0)] * 10, "label": list(range(10))}
    hf.DatasetDict({"train": hf.Dataset.from_dict(cells, features=kinds)}).save_to_disk(tmp_path / "n")
    given = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    splits = open_dataset(DataSettings(name="x", hub=str(tmp_path / "n"), classes=given))
    assert list(splits.classes)[:3] == ["one", "ten", "two"]


def test_a_share_is_public_and_a_concept_is_never_on_both_sides(tmp_path) -> None:
    texts = (lambda count: [[f"a {n}", f"b {n}"] for n in range(count)], hf.List(hf.Value("string")))
    place = hub(tmp_path / "a", caption=texts)
    splits = open_dataset(DataSettings(name="x", hub=place, public=PublicSettings(share=0.5)))
    sides = [set(getattr(splits, side)("train")["concept"][:]) for side in ("public", "private")]
    assert [len(side) for side in sides] == [9, 9] and not sides[0] & sides[1]


def test_names_are_said_as_people_say_them() -> None:
    assert (
        spoken("apple_pie") == "apple pie" and spoken("n01443537") == "goldfish" and spoken("n99999999") == "n99999999"
    )


@pytest.mark.parametrize(
    "given, message",
    [
        ({"hub_splits": {"test": "holdout"}}, "data.hub_splits.test: .* has no split 'holdout'; it has train, test"),
        ({"label_column": "dish"}, "data.label_column: .* has no column 'dish'; it has image, label"),
        ({"domain_column": "place"}, "data.domain_column: .* has no column 'place'; it has image, label"),
        ({"classes": ["a", "b", "c"]}, "data.classes has 3 names, but the data have 2 classes"),
    ],
)
def test_what_is_not_there_is_one_line_that_names_the_key(given, message, tmp_path) -> None:
    place = hub(tmp_path / "a")
    with pytest.raises(DataError, match=message) as raised:
        open_dataset(DataSettings(name="x", hub=place, **given))
    assert "\n" not in str(raised.value)


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch) -> None:
    def offline(*args, **how):
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub (LocalEntryNotFoundError)\nmore")

    monkeypatch.setattr(hf, "load_dataset", offline)
    way = "hf download --repo-type dataset nobody/nothing --local-dir DIR"
    with pytest.raises(DataError, match=f"data.hub: nobody/nothing cannot be fetched: .*{way}") as raised:
        open_dataset(DataSettings(name="x", hub="nobody/nothing"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "name",
    [
        "cifar10",
        "cifar100",
        "tiny_imagenet",
        "flowers102",
        "food101",
        "coco",
        "flickr30k",
        "ag_news",
        "digits_domains",
        "office",
    ],
)
def test_every_named_set_composes(name) -> None:
    data = composition.compose([f"data={name}", "data.path=/data"]).data
    assert data.name == name and (data.hub or data.hub_domains or name in ("coco", "flickr30k"))
    assert name != "flowers102" or (len(data.classes) == 102 and data.classes[0] == "pink primrose")


# -- the authors' layouts --------------------------------------------------------------------------------------------


def jpegs(folder: Path, names) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(names):
        picture(10 * n).save(folder / name, quality=100)


def write_karpathy(place: Path) -> None:
    jpegs(place / "val2014", [f"{n}.jpg" for n in range(6)])
    images = [
        {
            "filepath": "val2014",
            "filename": f"{n}.jpg",
            "split": split,
            "sentences": [{"raw": f"a {n} "}, {"raw": f"b {n}"}],
        }
        for n, split in enumerate(["train", "restval", "train", "val", "test", "test"])
    ]
    (place / "dataset_coco.json").write_text(json.dumps({"images": images}))


def write_coco(place: Path) -> None:
    (place / "annotations").mkdir(parents=True)
    for folder, count in (("train2017", 10), ("val2017", 2)):
        jpegs(place / folder, [f"{n}.jpg" for n in range(count)])
        held = {
            "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(count)],
            "annotations": [{"image_id": n, "caption": f"{word} {n}"} for n in range(count) for word in "ab"],
        }
        (place / "annotations" / f"captions_{folder}.json").write_text(json.dumps(held))


def write_flickr(place: Path) -> None:
    jpegs(place / "flickr30k-images", [f"{n}.jpg" for n in range(12)])
    lines = [
        "image_name| comment_number| comment",
        *(f"{n}.jpg| {k}| {w} {n} ." for n in range(12) for k, w in enumerate("ab")),
    ]
    (place / "results.csv").write_text("\n".join(lines))


def test_flowers_and_food_have_classes_and_texts(tmp_path) -> None:
    """Flowers: ten images of class n % 2 + 1, two captions each; Food: class folders, titles with commas."""
    flowers, food = tmp_path / "flowers", tmp_path / "food"
    jpegs(flowers / "jpg", [f"image_{n:05}.jpg" for n in range(20)])
    for n in range(20):
        folder = flowers / "text_c10" / f"class_{n % 2 + 1:05}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"image_{n:05}.txt").write_text(f"a {n}\nb {n}\n")
    splits = open_dataset(DataSettings(name="flowers102", path=str(flowers), classes=["pink primrose", "rose"]))
    assert list(splits.classes) == ["pink primrose", "rose"] and [len(splits.train), len(splits.test)] == [32, 4]
    assert {
        text[0]: label for text, label in zip(splits.train["text"][:2], splits.train["label"][:2], strict=True)
    } == {
        "a": 0,
        "b": 0,
    }
    for split, count in (("train", 10), ("test", 2)):
        jpegs(food / "images" / split / "apple_pie", [f"{n}.jpg" for n in range(count)])
        (food / "texts").mkdir(exist_ok=True)
        lines = "".join(f'{n}.jpg,"pie, {n}",apple_pie\n' for n in range(count))
        (food / "texts" / f"{split}_titles.csv").write_text(lines)
    splits = open_dataset(DataSettings(name="food101", path=str(food)))
    assert list(splits.classes) == ["apple pie"] and splits.test["text"][:] == ["pie, 0", "pie, 1"]


@pytest.mark.parametrize(
    "write, rows", [(write_karpathy, [6, 2, 4]), (write_coco, [18, 2, 4]), (write_flickr, [20, 2, 2])]
)
def test_the_authors_layouts_are_pairs(write, rows, tmp_path) -> None:
    place = tmp_path / "set"
    place.mkdir()
    write(place)
    splits = open_dataset(DataSettings(name="coco", path=str(place)))
    assert [len(getattr(splits, s)) for s in ("train", "validation", "test")] == rows
    pairs = read_rows(splits.test, "pair", 8, splits.place)
    assert pairs.texts[0][0] == "a" and pairs.texts[1][0] == "b" and torch.equal(pairs.images[0], pairs.images[1])
    assert list(splits.classes) == ["picture"]


def write_saved(place: Path) -> None:
    hub(place, caption=(lambda count: [[f"a {n}", f"b {n}"] for n in range(count)], hf.List(hf.Value("string"))))


@pytest.mark.parametrize(
    "write, counts",
    [
        (write_karpathy, (6, 4)),
        (write_coco, (18, 4)),
        (write_flickr, (20, 2)),
        (lambda place: write_flowers(place, 20), (32, 4)),
        (lambda place: write_food(place, 20), (18, 4)),
        (write_saved, (36, 12)),
    ],
)
def test_each_layout_can_be_the_public_set_of_other_data(write, counts, tmp_path) -> None:
    """Its training rows are public, and the server is judged on its own test rows: the run's data have no such rows."""
    (tmp_path / "set").mkdir()
    write(tmp_path / "set")
    given = [f"data.hub={hub(tmp_path / 'run')}", f"data.public.path={tmp_path / 'set'}", "++data.public.pairs=null"]
    conf = composition.compose(["data=cifar10", "data.image_size=8", *given])
    pairs, judged = open_public(conf), held_out_pairs(conf, "test")
    assert (len(pairs), len(judged)) == counts and pairs.images.shape[1:] == (3, 8, 8)
    conf.data.public.path = None
    with pytest.raises(DataError, match="has no public rows"):
        open_public(conf)


def test_a_missing_picture_is_named(tmp_path) -> None:
    (tmp_path / "set").mkdir()
    write_flickr(tmp_path / "set")
    (tmp_path / "set/flickr30k-images/7.jpg").unlink()
    with pytest.raises(DataError, match="flickr30k-images/7.jpg is missing, but the captions name it"):
        open_dataset(DataSettings(name="flickr30k", path=str(tmp_path / "set")))


# -- too large for memory --------------------------------------------------------------------------------------------


def test_images_move_to_a_file_and_stay_the_same() -> None:
    """Three images of 8 x 8 are 576 bytes: the third is over a limit of 500. A place may be filled later."""
    images = [np.random.default_rng(n).integers(0, 256, (8, 8, 3), dtype=np.uint8) for n in range(5)]
    small, large = Pictures(8, 10_000), Pictures(8, 500)
    for n, image in enumerate(images):
        small.append(image)
        large.append("later" if n == 1 else image)
    large[1] = images[1]
    kept, stored = small.images(), large.images()
    assert isinstance(kept, torch.Tensor) and isinstance(stored, StoredImages)
    assert stored.shape == kept.shape == (5, 3, 8, 8) and torch.equal(stored[:], kept)
    assert torch.equal(stored[torch.tensor([4, 0])], kept[[4, 0]]) and torch.equal(stored[3], kept[3])
    some = picked(stored, torch.tensor([2, 4]))
    assert isinstance(some, StoredImages) and torch.equal(some[1], kept[4])
    assert torch.equal(torch.cat(list(some.split(1))), kept[[2, 4]])
    assert torch.equal(some.through(lambda x: 255 - x)[0], 255 - kept[2])
    assert len(list(stored)) == 5
    with pytest.raises(IndexError):
        stored[5]


def test_a_directory_that_is_missing_or_of_no_layout_is_one_line(tmp_path) -> None:
    for place, said in ((tmp_path / "no", "is not there: it needs one"), (tmp_path, "has none")):
        with pytest.raises(DataError, match=f"directory {place} {said} of the layouts that docs/full-size.md lists$"):
            open_dataset(DataSettings(name="flowers102", path=str(place)))


def test_a_torn_file_is_told(tmp_path) -> None:
    stored_images.write(tmp_path / "x.pixels", [torch.zeros(3, 8, 8, dtype=torch.uint8)])
    assert opened(tmp_path / "x.pixels", 8, [0])[0].sum() == 0
    with pytest.raises(OSError, match="shorter than its rows"):
        opened(tmp_path / "x.pixels", 8, [1])[0]


def test_a_folder_too_large_for_memory_gives_the_same_rows(tmp_path, monkeypatch) -> None:
    """Prepared twice, in memory and in files: same splits, ids, labels and pixels; the tables hold no picture."""
    for n in range(24):
        folder = tmp_path / "photos" / ("cat", "dog")[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(
            folder / f"{n}.png"
        )
    found = []
    for limit in (1 << 28, 1000):
        monkeypatch.setattr(stored_images, "LARGEST", limit)
        out = tmp_path / f"run-{limit}"
        conf = composition.compose(
            [
                "data=folder",
                f"data.path={tmp_path / 'photos'}",
                "data.image_size=16",
                f"out={out}",
                f"data.prepared={out}/own-data",
            ]
        )
        facts = prepare(conf)
        splits = open_dataset(conf.data)
        found.append((facts, read_rows(splits.train, "image", 16, f"{splits.place}/train"), splits.train))
    (facts, kept, _), (again, stored, table) = found
    assert facts == again and isinstance(stored.images, StoredImages) and torch.equal(stored.ids, kept.ids)
    assert torch.equal(stored.images[:], kept.images) and torch.equal(stored.labels, kept.labels)
    assert {cell["bytes"] for cell in table.cast_column("image", hf.Image(decode=False))["image"]} == {None}


# -- worker processes --------------------------------------------------------------------------------------------------


def noisy(n: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(n).integers(0, 256, (9, 7, 3), dtype=np.uint8))


def test_worker_processes_give_the_same_rows_in_the_same_order(tmp_path) -> None:
    """40 rows are three pieces of work for two processes; nothing is drawn from the global generator."""
    kinds = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=NAMES)})
    cells = {"image": [noisy(n) for n in range(40)], "label": [n % 2 for n in range(40)]}
    hf.DatasetDict({"train": hf.Dataset.from_dict(cells, features=kinds)}).save_to_disk(tmp_path / "a")
    splits = open_dataset(DataSettings(name="x", hub=str(tmp_path / "a")))
    alone = read_rows(splits.train, "image", 8, splits.place)
    before = torch.random.get_rng_state()
    shared = read_rows(splits.train, "image", 8, splits.place, workers=2)
    assert torch.equal(torch.random.get_rng_state(), before) and len(alone) == 33
    assert torch.equal(alone.images, shared.images) and torch.equal(alone.ids, shared.ids)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_row_gives_the_same_line_with_workers(workers, tmp_path) -> None:
    (tmp_path / "set").mkdir()
    write_flickr(tmp_path / "set")
    (tmp_path / "set/flickr30k-images/3.jpg").write_bytes(b"\xff\xd8 torn")
    splits = open_dataset(DataSettings(name="flickr30k", path=str(tmp_path / "set")))
    with pytest.raises(DataError) as told:
        read_rows(splits.train, "pair", 8, splits.place, workers=workers)
    assert str(told.value).startswith(f"{splits.place}, id 6: the image cannot be read (cannot identify image file")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_ends_the_rows_comes_after_the_rows_before_it(workers) -> None:
    """The rows stop in the second piece of two; its one row still arrives."""

    def rows():
        yield from (("row", {"n": n}) for n in range(3))
        raise ValueError("torn")

    found = []
    with pytest.raises(ValueError, match="torn"):
        for part in in_order(lambda rows: [cells["n"] + 10 for _, cells in rows], batched(rows(), 2), workers):
            found += part
    assert found == [10, 11, 12]


def test_a_process_that_is_ended_is_one_line() -> None:
    with pytest.raises(BrokenPipeError, match="a process of data.workers was ended from outside; lower data.workers"):
        list(in_order(lambda n: os._exit(9), range(3), 1))


def test_own_data_are_the_same_with_workers(tmp_path) -> None:
    """Twenty pictures of two classes, one torn, one a duplicate: the same rows and the same findings."""
    for n in range(20):
        put(tmp_path / "photos" / CLASSES[n % 2] / f"{n}.png", n)
    put(tmp_path / "photos" / CLASSES[0] / "8.png", picture_of(8)[:60])
    put(tmp_path / "photos" / CLASSES[1] / "11.png", 9)
    alone, shared = (look(tmp_path / "photos", workers=workers) for workers in (0, 2))
    assert alone.findings == shared.findings and len(alone.refused) == 1 and alone.places == shared.places
    assert torch.equal(alone.rows.images, shared.rows.images) and alone.sizes == shared.sizes
