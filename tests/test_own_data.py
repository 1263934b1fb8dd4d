"""A site's own data: every layout gives the same rows, every fault is named by file and row, nothing bad is opened."""

import csv
import io
import json
import struct
import zlib

import datasets
import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from PIL import Image

from client_app import app
from florilegium.cli import main
from florilegium.config import composition
from florilegium.config.data import DataSettings
from florilegium.data.datasets import DataError
from florilegium.data.own.examination import Matching, examine
from florilegium.data.own.sources import OwnSettings
from florilegium.data.private import open_private
from florilegium.protocol import codec
from florilegium.protocol.codec import Header
from florilegium.protocol.payloads import Nothing

CLASSES = ("disc", "square", "triangle", "cross")
COLOURS = {"disc": (255, 0, 0), "cross": (0, 0, 255)}


def picture(colour, side=16, form="PNG", **how):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, form, **how)
    return buffer.getvalue()


def folder(place):
    for name, colour in COLOURS.items():
        (place / name).mkdir(parents=True)
        for n in range(2):
            (place / name / f"test_{n}.png").write_bytes(picture((*colour[:2], colour[2] - n if colour[2] else n)))
    return place


def rows():
    return [{"text": f"a {name} of {size}", "label": name} for name in COLOURS for size in ("one", "NA", "2020-01-01")]


def written(file, given):
    if file.suffix == ".csv":
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, given[0])
            writer.writeheader()
            writer.writerows(given)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in given))
    elif file.suffix == ".json":
        file.write_text(json.dumps(given))
    elif file.suffix == ".parquet":
        datasets.Dataset.from_list(given).to_parquet(str(file))
    else:
        datasets.Dataset.from_list(given).save_to_disk(str(file))
    return file


def look(path, modality="text", side=16, **how):
    return examine(OwnSettings(str(path), **how), CLASSES, modality, side)


def kinds(found, refused=True):
    return {f.kind for f in found.findings if f.refused == refused}


# -- layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json", "t.parquet", "saved"])
def test_a_table_of_any_kind_gives_the_same_texts_and_labels(name, tmp_path):
    found = look(written(tmp_path / name, rows())).whole()
    assert found.texts == tuple(row["text"] for row in rows())  # nothing is taken for a date or for missing
    assert found.labels.tolist() == [0, 0, 0, 3, 3, 3] and found.ids.tolist() == list(range(6))


def test_an_image_folder_is_read_by_its_folders_names(tmp_path):
    found = look(folder(tmp_path / "a [strange] test folder"), "image", side=4).whole()
    assert found.labels.tolist() == [3, 3, 0, 0] and found.images.shape == (4, 3, 4, 4)  # paths in order: cross first
    assert found.images[:, :, 0, 0].tolist() == [[0, 0, 255], [0, 0, 254], [255, 0, 0], [255, 0, 1]]


def test_one_class_alone_and_a_train_folder_are_folders_too(tmp_path):
    folder(tmp_path / "own" / "train")
    folder(tmp_path / "own" / "test")
    assert len(look(tmp_path / "own", "image").whole()) == 4
    assert look(tmp_path / "own" / "train" / "disc", "image").refused == []  # its only folder is the class


@pytest.mark.parametrize("metadata", ["metadata.csv", "metadata.jsonl"])
def test_pairs_are_a_folder_with_metadata_or_a_table_with_paths(metadata, tmp_path):
    place = folder(tmp_path / "own")
    listed = [
        {"file_name": f"{name}/test_{n}.png", "text": f"{name} {n}", "label": name}
        for name in COLOURS
        for n in range(2)
    ]
    written(place / metadata, listed)
    found = look(place, "pair").whole()
    table = [{"image": row["file_name"], "text": row["text"], "label": row["label"]} for row in listed]
    other = look(written(place / "pairs.parquet", table), "pair").whole()
    for one in (found, other):
        assert one.texts == ("disc 0", "disc 1", "cross 0", "cross 1") and one.labels.tolist() == [0, 0, 3, 3]
        assert one.images[3, :, 0, 0].tolist() == [0, 0, 254] and one.groups.tolist() == [0, 1, 2, 3]
    assert look(place, "image").whole().labels.tolist() == [0, 0, 3, 3]


def test_numbers_are_classes_only_where_the_file_names_them(tmp_path):
    label = datasets.ClassLabel(names=["Cross", "disc"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    saved = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    saved.save_to_disk(tmp_path / "saved")
    assert look(tmp_path / "saved").whole().labels.tolist() == [3, 0]
    found = look(written(tmp_path / "t.parquet", [{"text": "a", "label": 3}]))
    assert "class '3' is none of the federation's" in found.refused[0].what


def test_columns_may_have_other_names(tmp_path):
    table = written(tmp_path / "t.csv", [{"report": "a disc", "finding": "disc"}])
    assert look(table, text_column="report", label_column="finding").whole().texts == ("a disc",)
    (finding,) = look(table, label_column="finding").findings
    assert finding.kind == "missing column" and "no column 'text'; there are report, finding" in finding.what


def test_class_names_match_but_for_case_and_spaces(tmp_path):
    match = Matching(("hot air balloon", "T-shirt", "tshirt", "disc"))
    assert [match(name) for name in ("Hot_Air-Balloon ", "DISC", "tshirt", "T-SHIRT")] == [0, 3, 2, None]
    found = look(written(tmp_path / "t.csv", [{"text": "a", "label": " Disc "}]))
    assert found.whole().labels.tolist() == [0] and "class ' Disc ' is read as 'disc'" in str(found.findings[0])


# -- what is wrong -----------------------------------------------------------------------------------------------------


def bomb(side=40_000):
    """A PNG whose header claims side x side pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks
    )


@pytest.mark.parametrize(
    "data, kind",
    [
        (b"no image", "unreadable image"),
        (picture((1, 2, 3), 64, "JPEG")[:-200], "truncated image"),
        (picture((1, 2, 3))[:60], "truncated image"),
        (bomb(), "image too large"),
        (b"", "unreadable image"),
    ],
)
def test_a_bad_image_is_named_by_its_file(data, kind, tmp_path):
    place = folder(tmp_path / "own")
    (place / "disc" / "bad.png").write_bytes(data)
    found = look(place, "image")
    (bad,) = found.refused
    assert bad.kind == kind and bad.where == str(place / "disc" / "bad.png") and "\n" not in str(bad)
    with pytest.raises(DataError, match="bad.png"):
        found.whole()
    assert len(found.rows) == 4  # the others


@pytest.mark.parametrize(
    "text, kind, where",
    [
        (b"text,label\ncaf\xe9,disc\nok,disc\n", "wrong encoding", "line 2"),
        ("text,label\na,disc\n".encode("utf-16"), "wrong encoding", "line 1"),
        (b"text,label\na,disc\n ,disc\n", "empty text", "row 2"),
        (b"text,label\na,disc\nb,\n", "no label", "row 2"),
        (b"text,label\na,disc\nb,hexagon\n", "unknown class", "row 2"),
        (b"text,label\na,disc\nb\n", "malformed row", "row 2"),
        (b"text\na\n", "missing column", "t.csv"),
        (b"text,label\n", "no rows", "t.csv"),
    ],
)
def test_a_bad_row_of_a_table_is_named(text, kind, where, tmp_path):
    place = tmp_path / "own"
    place.mkdir()
    (place / "t.csv").write_bytes(text)
    (bad,) = look(place / "t.csv").refused
    assert "\n" not in str(bad)
    assert bad.kind == kind and where in bad.where


def test_a_bad_line_of_json_is_named(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": "disc"}\n{"text": \n[1]\n')
    assert [bad.where[-5:] for bad in look(tmp_path / "t.jsonl").refused] == ["row 2", "row 3"]


def test_warnings_do_not_refuse(tmp_path):
    place = folder(tmp_path / "own")
    (place / "disc" / "copy.png").write_bytes((place / "disc" / "test_0.png").read_bytes())
    (place / "disc" / "also.png").write_bytes((place / "cross" / "test_0.png").read_bytes())
    (place / "disc" / "notes.txt").write_text("left out")
    (place / "square").mkdir()
    found = look(place, "image", side=32)
    assert not found.refused and len(found.whole()) == 6
    assert kinds(found, False) == {
        "duplicate",
        "two classes",
        "other file",
        "empty folder",
        "small image",
        "class without rows",
    }


def test_images_are_upright_and_on_white(tmp_path):
    place = tmp_path / "own" / "disc"
    place.mkdir(parents=True)
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, :16] = 255  # white left half, black right half
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: left becomes top
    Image.fromarray(wide).save(place / "a.jpg", exif=exif, quality=100)
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(place / "b.png")
    upright, clear = look(place.parent, "image").whole().images
    assert upright[:, 0, 8].min() > 240 and upright[:, 15, 8].max() < 15
    assert clear.min() == 255


# -- at the client -----------------------------------------------------------------------------------------------------


def test_a_client_is_judged_on_the_sites_own_rows_where_it_names_them(toy_conf, tmp_path):
    train, test = written(tmp_path / "train.csv", rows()), written(tmp_path / "test.csv", rows()[:2])
    conf = toy_conf()
    data = open_private(conf, 2, "text", {"data-path": str(train)})
    assert len(data.train) == 6 and len(data.test) > 6
    own = open_private(conf, 2, "text", {"data-path": str(train), "test-path": str(test)})
    assert own.test.texts == tuple(row["text"] for row in rows()[:2]) and len(own.validation) == len(data.validation)


def refusal(conf, node) -> str:
    """Why a client cannot answer `profile`, as its server hears it."""
    run_config = {"settings": json.dumps(composition.plain(conf)), "overrides": ""}
    context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=run_config)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    question = Message(codec.pack(Nothing(), Header("method", 0, 1)), 1, "query.profile")
    return app.answer("profile", question, context).error.reason


def test_a_client_whose_gpu_is_too_small_says_what_to_lower(toy_conf, tmp_path, monkeypatch):
    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")

    monkeypatch.setattr(app, "perform", full)
    conf = toy_conf("clients.mix=[{modality: image, model: resnet}]")
    reason = refusal(conf, {"partition-id": 0, "num-partitions": 1, "state-dir": str(tmp_path)})
    assert reason.startswith("MemoryError: too little GPU memory: lower the batch of the method's client, or set")


def test_the_server_hears_of_refused_data_without_names_or_contents(toy_conf, tmp_path, caplog):
    place = folder(tmp_path / "own")
    (place / "disc" / "jane-doe.png").write_bytes(b"no image")
    conf = toy_conf("clients.mix=[{modality: image, model: resnet}]")
    node = {"partition-id": 0, "data-path": str(place), "state-dir": str(tmp_path / "state")}
    reason = refusal(conf, node)
    assert "own data are refused (unreadable image: 1 in all)" in reason
    assert "jane" not in reason and str(tmp_path) not in reason


@pytest.mark.parametrize(
    "key, value, message", [("max-pixels", 0, "max-pixels must lie between"), ("data-path", "nowhere", "no such file")]
)
def test_a_bad_node_configuration_is_one_line(key, value, message, tmp_path, toy_conf):
    with pytest.raises(DataError, match=message) as caught:
        open_private(toy_conf(), 0, "text", {"data-path": str(written(tmp_path / "t.csv", rows())), key: value})
    assert "\n" not in str(caught.value)


# -- the command -------------------------------------------------------------------------------------------------------


def command(capsys, *arguments):
    options = main.parse(["data", "check", *map(str, arguments)])
    return options.command(options), capsys.readouterr().out


def test_the_command_names_what_is_wrong_and_its_code_says_whether_a_client_would_refuse(tmp_path, capsys):
    place = folder(tmp_path / "own")
    code, out = command(capsys, place, "--data", "toy")
    assert code == 0 and "4 rows, 4 of them usable" in out and "warning: class without rows (1)" in out
    assert "image folder, read as image" in out and "16x16 to 16x16 pixels, 1 different" in out
    (place / "disc" / "bad.png").write_bytes(b"")
    (place / "hexagon").mkdir()
    (place / "hexagon" / "x.png").write_bytes(picture((0, 0, 0)))
    code, out = command(capsys, place, "--data", "toy")
    assert code == 1 and "refused: unreadable image (1)" in out and "bad.png" in out
    assert "class 'hexagon' is none of the federation's: disc, square, triangle, cross" in out
    code, out = command(capsys, written(tmp_path / "t.csv", rows()), "--data", "toy")
    assert code == 0 and "read as text: 6 rows" in out and "4 to 4 words" in out


def test_the_command_looks_at_every_split(tmp_path, capsys):
    """A run reads them all, so a torn picture of any of them is refused."""
    folder(tmp_path / "own" / "train")
    folder(tmp_path / "own" / "test")
    code, out = command(capsys, tmp_path / "own")
    assert code == 0 and "split train:" in out and "split test:" in out and "left out" not in out
    assert out.count("4 rows, 4 of them usable") == 2
    (tmp_path / "own" / "test" / "disc" / "bad.png").write_bytes(b"")
    code, out = command(capsys, tmp_path / "own")
    assert code == 1 and "test/disc/bad.png" in out and "run them" not in out


def test_the_toy_federation_is_what_these_tests_think():
    conf = DataSettings(name="toy", image_size=16)
    from florilegium.data.datasets import open_dataset

    assert tuple(open_dataset(conf).classes) == CLASSES and torch.get_num_threads() == 1
