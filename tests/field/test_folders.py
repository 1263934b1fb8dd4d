"""Folders of pictures as people have them: splits, links, deep pictures, texts beside them, what programs leave."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from florilegium.data.own.names import split_of
from florilegium.data.own.photos import decoded
from tests.field.inputs import CLASSES, labels, look, picture, put, refused, two_classes, warned

FOUR = ["aircraft", "aircraft", "fruit", "fruit"]  # in the order of the paths

# -- splits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, split",
    [
        ("Train", "train"),
        ("TRAINING_SET", "train"),
        ("train2017", "train"),
        ("my_train_images", "train"),
        ("seg_train", "train"),
        ("trainval", "train"),
        ("train_val", "train"),
        ("Val", "validation"),
        ("dev-set", "validation"),
        ("validationData", "validation"),
        ("PublicTest", "test"),
        ("test-00000-of-00001", "test"),
        ("Testing", "test"),
        ("train shoes", None),
        ("testbed", None),
        ("fruit", None),
        ("train_test", None),
        ("2017", None),
    ],
)
def test_names_of_splits(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize("train, test", [("Train", "Test"), ("training_set", "test_set"), ("train2017", "val2017")])
def test_only_train_is_trained_on_and_the_rest_is_named(train, test, tmp_path):
    two_classes(tmp_path, train)
    two_classes(tmp_path, test, seed=100)
    found = look(tmp_path)
    assert labels(found) == FOUR and warned(found) == {"split"} and found.split == "train"
    assert all(f"/{train}/" in place for place in found.places)
    held_out = look(tmp_path, split=split_of(test))
    assert labels(held_out) == FOUR and all(f"/{test}/" in place for place in held_out.places)


def test_splits_below_the_classes_and_below_an_outer_folder(tmp_path):
    two_classes(tmp_path / "a")
    for name in ("fruit", "aircraft"):
        put(tmp_path / "b" / name / "train" / "0.png", 1 + len(name))
        put(tmp_path / "b" / name / "test" / "0.png", 50 + len(name))
    found = look(tmp_path / "b")
    assert labels(found) == ["aircraft", "fruit"] and warned(found) == {"split"}
    two_classes(tmp_path / "c", "images", "Train")
    two_classes(tmp_path / "c", "images", "Test", seed=100)
    found = look(tmp_path / "c" / "images")
    assert labels(found) == FOUR and warned(found) == {"split"}


def test_a_split_beside_a_class_is_refused_and_a_class_of_that_name_is_named(tmp_path):
    two_classes(tmp_path / "mixed", "train")
    put(tmp_path / "mixed" / "mammal" / "0.png", 5)
    assert refused(look(tmp_path / "mixed")) == [("split", "train")]
    for n, name in enumerate(("car", "train", "plane")):  # a train is a vehicle here
        put(tmp_path / "vehicles" / name / "0.png", n)
    found = look(tmp_path / "vehicles", classes=("car", "plane", "train"))
    assert found.whole().labels.tolist() == [0, 1, 2] and warned(found) == {"split"}
    put(tmp_path / "half" / "fruit" / "test" / "0.png", 1)
    put(tmp_path / "half" / "fruit" / "1.png", 2)
    assert [kind for kind, _ in refused(look(tmp_path / "half"))] == ["split"]


def test_one_split_alone_is_read_and_two_without_train_are_not(tmp_path):
    two_classes(tmp_path, "test")
    assert labels(look(tmp_path)) == FOUR and warned(look(tmp_path)) == {"split"}
    two_classes(tmp_path, "val", seed=100)
    assert refused(look(tmp_path)) == [("no split", tmp_path.name)]


# -- kinds and depths of pictures --------------------------------------------------------------------------------------


def encoded(array, form="PNG", **how):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form, **how)
    return buffer.getvalue()


def ramp(top, kind=np.uint16):
    return np.tile(np.linspace(0, top, 40).astype(kind), (40, 1))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("top, bits", [(65535, 16), (16383, 14), (4095, 12), (1023, 10)])
def test_deep_grey_is_scaled_by_the_bits_in_use(form, top, bits, tmp_path):
    put(tmp_path / "fruit" / "a.png", encoded(ramp(top), form))
    found = look(tmp_path)
    assert abs(found.whole().images.float().mean() - 127.5) < 2 and warned(found) == {"deep image"}
    assert f"of which these data use {bits}" in str([f for f in found.findings if f.kind == "deep image"][0])


def test_one_scale_holds_for_all_deep_pictures_of_a_set(tmp_path):
    put(tmp_path / "fruit" / "a.tif", encoded(ramp(65535), "TIFF"))
    put(tmp_path / "fruit" / "dark.tif", encoded(np.full((40, 40), 257 * 20, np.uint16), "TIFF"))
    assert look(tmp_path).whole().images[1].unique().tolist() == [20]  # not brighter because it is dark


def test_fractions_signed_numbers_and_pixels_that_are_no_numbers(tmp_path):
    put(tmp_path / "a" / "fruit" / "a.tif", encoded(ramp(1.0, np.float32), "TIFF"))
    put(tmp_path / "b" / "fruit" / "a.tif", encoded(ramp(3000, np.int32) - 1000, "TIFF"))
    for name in "ab":
        images = look(tmp_path / name).whole().images
        assert abs(images.float().mean() - 127.5) < 2 and images.min() < 20 and images.max() > 235
    broken = ramp(1.0, np.float32)
    broken[3, 3] = np.nan
    put(tmp_path / "c" / "fruit" / "a.tif", encoded(broken, "TIFF"))
    assert refused(look(tmp_path / "c")) == [("unreadable image", "a.tif")]


@pytest.mark.parametrize("way, corner", [(3, (7, 7)), (6, (0, 7)), (8, (7, 0)), (2, (0, 7)), (4, (7, 0)), (5, (0, 0))])
def test_deep_pictures_are_turned_upright_as_others_are(way, corner):
    exif = Image.Exif()
    exif[0x0112] = way
    deep = np.zeros((8, 8), np.uint16)
    deep[0, 0] = 65535  # the corner that moves
    flat = (deep // 257).astype(np.uint8)
    seen = decoded(encoded(deep, exif=exif), 8, 100).pixels.values
    assert np.unravel_index(seen.argmax(), seen.shape) == corner
    other = decoded(encoded(flat, exif=exif), 8, 100).pixels[..., 0]
    assert np.unravel_index(other.argmax(), other.shape) == corner


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_of_pillow_is_read(mode):
    red = Image.new("RGB", (8, 8), (200, 30, 30))
    image = Image.fromarray(np.full((8, 8, 3), (200, 30, 30), np.uint8)) if mode == "LAB" else red.convert(mode)
    if mode == "LAB":
        from PIL import ImageCms

        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if mode in ("CMYK", "YCbCr", "LAB") else "PNG")
    colour = decoded(buffer.getvalue(), 8, 100).pixels[4, 4].astype(int)
    grey = {"1": (0, 0, 0), "L": (81, 81, 81), "LA": (81, 81, 81)}.get(mode, (200, 30, 30))
    assert np.abs(colour - grey).max() <= (255 if mode == "1" else 45 if mode == "P" else 6)


def test_all_kinds_are_read_or_left_out_with_a_warning_and_moving_ones_by_their_first_frame(tmp_path):
    for n, (suffix, form) in enumerate(
        [("bmp", "BMP"), ("gif", "GIF"), ("tif", "TIFF"), ("JPG", "JPEG"), ("jfif", "JPEG"), ("webp", "WEBP")]
    ):
        put(tmp_path / "fruit" / f"x.{suffix}", picture(n, form))
    put(tmp_path / "fruit" / "without_ending", picture(20))
    put(tmp_path / "fruit" / "phone.heic", b"\0\0\0\x18ftypheic")
    put(tmp_path / "fruit" / "notes.md", "left out")
    frames = [Image.new("RGB", (12, 12), (250, 0, 0)), Image.new("RGB", (12, 12), (0, 0, 250))]
    frames[0].save(tmp_path / "fruit" / "moving.gif", save_all=True, append_images=frames[1:])
    found = look(tmp_path)
    assert len(found.whole()) == 8 and warned(found) == {"other file", "several frames"}
    first = found.whole().images[[n for n, place in enumerate(found.places) if "moving" in place][0]]
    assert first[0].min() > 240 and first[2].max() < 15
    assert sum("save it as PNG or JPEG" in finding.what for finding in found.findings) == 1


def test_a_picture_with_broken_exif_is_read(tmp_path):
    put(tmp_path / "fruit" / "a.jpg", picture(1, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken"))
    assert labels(look(tmp_path)) == ["fruit"]


def test_a_large_picture_is_made_smaller_first_and_looks_the_same():
    steps = np.repeat(np.repeat(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4, 300, 0), 300, 1)  # 2400 x 2400
    for image in (Image.fromarray(steps), Image.fromarray(steps).convert("P")):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        seen = decoded(buffer.getvalue(), 8, 1 << 26).pixels[..., 0].astype(int)
        assert np.abs(seen - steps[150::300, 150::300]).max() <= 12


# -- names and places --------------------------------------------------------------------------------------------------


def test_any_name_of_a_folder_or_file(tmp_path):
    two_classes(tmp_path)
    for name in ("a::b", "[x] *?", "ça va", "new\nline", "'q\""):
        put(tmp_path / name / "0.png", len(name))
    found = look(tmp_path)
    assert [kind for kind, _ in refused(found)] == ["unknown class"] * 5
    assert "class 'a::b' is none of the federation's" in "".join(map(str, found.refused))
    os.makedirs(os.fsencode(tmp_path / "odd" / "fruit"))
    with open(os.fsencode(tmp_path / "odd" / "fruit") + b"/caf\xe9.png", "wb") as file:
        file.write(b"no picture")
    ((kind, _),) = refused(look(tmp_path / "odd"))
    assert kind == "unreadable image" and str(look(tmp_path / "odd").refused[0]).encode()


def test_links_are_followed_once_and_circles_are_not(tmp_path):
    two_classes(tmp_path / "own")
    put(tmp_path / "store" / "0.png", 40)
    (tmp_path / "own" / "mammal").symlink_to(tmp_path / "store", target_is_directory=True)
    (tmp_path / "own" / "fruit" / "again").symlink_to(tmp_path / "own", target_is_directory=True)
    found = look(tmp_path / "own")
    assert labels(found) == [*FOUR, "mammal"] and warned(found) == {"other file"}
    (tmp_path / "own" / "fruit" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert refused(look(tmp_path / "own")) == [("missing file", "gone.png")]


@pytest.mark.parametrize(
    "name", ["@eaDir", "#recycle", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN", ".Trash-1000"]
)
def test_what_other_programs_leave_is_left_out_and_named(name, tmp_path):
    two_classes(tmp_path)
    put(tmp_path / name / "0.png" / "SYNOPHOTO_THUMB_M.jpg", 7)
    put(tmp_path / "fruit" / name / "1.png", 8)
    put(tmp_path / "fruit" / "._0.png", b"\0\5\26\7")
    put(tmp_path / "fruit" / "Thumbs.db", b"\xd0\xcf")
    found = look(tmp_path)
    assert labels(found) == FOUR and warned(found) == {"other file"}


def test_the_class_is_the_folder_below_the_root(tmp_path):
    two_classes(tmp_path / "a")
    put(tmp_path / "a" / "fruit" / "2023-05" / "0.png", 30)
    assert labels(look(tmp_path / "a")) == [*FOUR, "fruit"]
    two_classes(tmp_path / "b", "images")
    found = look(tmp_path / "b")
    assert labels(found) == FOUR and warned(found) == {"outer folder"}
    put(tmp_path / "c" / "fruit" / "2023" / "0.png", 30)
    assert labels(look(tmp_path / "c")) == ["fruit"]
    put(tmp_path / "a" / "loose.png", 31)
    assert refused(look(tmp_path / "a")) == [("no label", "loose.png")]


# -- texts and pictures ------------------------------------------------------------------------------------------------


def test_the_texts_of_one_picture_are_one_group(tmp_path):
    put(tmp_path / "0.png", 1), put(tmp_path / "1.png", 2)
    rows = [{"file_name": "0.png", "text": f"fruit {n}", "label": "fruit"} for n in range(5)]
    put(tmp_path / "metadata.jsonl", [*rows, {"file_name": "1.png", "text": "a jet", "label": "aircraft"}])
    found = look(tmp_path, "pair")
    assert found.whole().groups.tolist() == [0, 0, 0, 0, 0, 5]
    listed = {"file_name": "0.png", "text": [f"fruit {n}" for n in range(5)], "label": "fruit"}
    put(tmp_path / "metadata.jsonl", [listed, {"file_name": "1.png", "text": "a jet", "label": "aircraft"}])
    again = look(tmp_path, "pair")
    assert again.whole().groups.tolist() == [0, 0, 0, 0, 0, 5] and again.whole().texts == found.whole().texts
    assert again.found == 2 and again.places[1].endswith("row 1, text 2")


def test_one_picture_in_two_classes_is_named(tmp_path):
    put(tmp_path / "0.png", 1)
    rows = [{"file_name": "0.png", "text": name, "label": name} for name in ("fruit", "aircraft")]
    put(tmp_path / "metadata.jsonl", rows)
    assert warned(look(tmp_path, "pair")) == {"two classes"}


def test_a_text_beside_each_picture_makes_a_pair(tmp_path):
    for n, name in enumerate(("fruit", "aircraft")):
        put(tmp_path / name / "a.png", n)
        put(tmp_path / name / "a.txt", f"a {name}\nof line two\n".encode("utf-8-sig"))
    found = look(tmp_path, "pair")
    assert found.whole().texts == ("a aircraft of line two", "a fruit of line two") and not warned(found)
    assert not warned(look(tmp_path)) and labels(look(tmp_path)) == ["aircraft", "fruit"]
    put(tmp_path / "fruit" / "b.png", 9)
    assert warned(look(tmp_path)) == {"texts left out"}
    put(tmp_path / "fruit" / "b.txt", b"caf\xe9")
    assert ("wrong encoding", "b.txt") in refused(look(tmp_path, "pair"))
    put(tmp_path / "fruit" / "readme.txt", "no picture has this name")
    assert warned(look(tmp_path)) == {"other file"}


def test_paths_of_metadata_in_folders_of_splits(tmp_path):
    rows = []
    for n, (split, name) in enumerate([("Train", "fruit"), ("Train", "aircraft"), ("Test", "fruit")]):
        put(tmp_path / split / f"{n}.png", n)
        rows.append({"file_name": f"{split}\\{n}.png", "text": f"{name} {n}", "label": name})  # as Windows writes it
    put(tmp_path / "metadata.jsonl", rows)
    found = look(tmp_path, "pair")
    assert labels(found) == ["fruit", "aircraft"] and warned(found) == {"split"}
    assert CLASSES[look(tmp_path, "pair", split="test").whole().labels[0]] == "fruit"
