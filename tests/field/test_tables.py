"""Tables as people have them: separators, encodings, cells of every type, ids, splits, parts, columns nobody uses."""

import decimal
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from florilegium.data.own.cells import id_of, label_of, texts_of
from florilegium.data.own.findings import BadCell, Finding
from tests.field.inputs import CLASSES, labels, look, picture, put, refused, warned

APPLE = "text,label\na red apple,fruit\n"


def parquet(place, columns):
    place.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), place)
    return place


# -- text files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line_end", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_lines_end_at_the_newline_alone(line_end, tmp_path):
    row = json.dumps({"text": f"one{line_end}two", "label": "fruit"}, ensure_ascii=False)
    put(tmp_path / "t.jsonl", row + "\r\n\n" + row.replace("one", "1"))
    assert look(tmp_path / "t.jsonl", "text").whole().texts == (f"one{line_end}two", f"1{line_end}two")
    put(tmp_path / "t.csv", f'text,label\none{line_end}two,fruit\n"a\nb",fruit\n')
    assert look(tmp_path / "t.csv", "text").whole().texts == (f"one{line_end}two", "a\nb")


@pytest.mark.parametrize("separator", [",", ";", "|", "\t", ", ", "| ", " | "])
@pytest.mark.parametrize("name", ["t.csv", "T.TSV"])
def test_any_separator_of_a_csv(separator, name, tmp_path):
    put(tmp_path / name, f'label{separator}"text"\nfruit{separator}"an ""apple"" , red; | cut"\n')
    found = look(tmp_path / name, "text")
    assert found.whole().texts == ('an "apple" , red; | cut',) and labels(found) == ["fruit"]


@pytest.mark.parametrize(
    "text",
    [
        "\n\ntext,label\n\na red apple,fruit\n",
        "\ufefftext,label\na red apple,fruit\n",
        "sep=;\ntext;label\na red apple;fruit\n",
        "text,label\ra red apple,fruit\r",
        "text,label\r\na red apple,fruit\r\n\r\n",
        "Text,LABEL\na red apple,fruit",
        "text,label,\na red apple,fruit,\n",
        "n,text,label\n1,a red apple,fruit\n,,\n",
    ],
)
def test_csv_files_as_programs_write_them(text, tmp_path):
    put(tmp_path / "t.csv", text)
    found = look(tmp_path / "t.csv", "text")
    assert found.whole().texts == ("a red apple",) and warned(found) <= {"empty row"}


def test_a_long_field_is_read_and_no_message_repeats_one(tmp_path):
    put(tmp_path / "t.csv", "text,label\n" + "word " * 30_000 + ",fruit\n")
    assert len(look(tmp_path / "t.csv", "text").whole().texts[0]) == 149_999
    long = "x" * 400_000
    for row in ({"text": "a", "label": long}, {"text": "a", "label": "fruit", "image": long}, [long], {long: 1}):
        put(tmp_path / "t.jsonl", json.dumps(row) + "\n")
        assert refused(look(tmp_path / "t.jsonl", "pair"))
    put(tmp_path / ("d" * 200) / ("e" * 200) / "t.csv", "text,label\na,\n")
    assert refused(look(tmp_path / ("d" * 200) / ("e" * 200) / "t.csv", "text")) == [("no label", "t.csv, row 1")]
    assert len(str(Finding("a", "w" * 5000, "x" * 5000))) <= 300


@pytest.mark.parametrize(
    "content, kind, where",
    [
        (b'{"text": "a\\ud83d", "label": "fruit"}\n', "wrong encoding", "row 1"),
        (b'{"text": "a", "label": "fru\\udc00it"}\n', "wrong encoding", "row 1"),
        ('{"text": "a", "label": "fruit"}'.encode("utf-16-le"), "wrong encoding", "line 1"),
        ('{"text": "a", "label": "fruit"}'.encode("utf-32"), "wrong encoding", "line 1"),
        (b'{"text": "a", "text": "b", "label": "fruit"}\n', "malformed row", "row 1"),
        (b"[" * 100_000, "malformed file", "t.jsonl"),
        (b'{"text": ' + b"[" * 100_000, "malformed row", "row 1"),
        (
            b'{"text": "a", "label": "fruit"}\n{"text": ' + b"9" * 5000 + b', "label": "fruit"}',
            "malformed row",
            "row 2",
        ),
        (b'{"text": {"0": "a"},\n "label": {"0": "fruit"}}', "malformed file", "t.jsonl"),
        (b"", "no rows", "t.jsonl"),
        (b'"a"\n', "malformed row", "row 1"),
    ],
)
def test_what_is_no_row_of_json_is_named(content, kind, where, tmp_path):
    found = look(put(tmp_path / "t.jsonl", content), "text")
    assert [(kind, where)] == [(k, w.rpartition("t.jsonl, ")[2]) for k, w in refused(found)]


@pytest.mark.parametrize(
    "content, kind, where",
    [
        ('text,label\n"a,fruit\n', "malformed row", "row 1"),
        ("text,label\n" + '"a" b,fruit\n', "malformed row", "row 1"),
        ("text,text,label\na,b,fruit\n", "malformed file", "t.csv"),
        ("text,label\na,b,fruit\nc,fruit\n", "malformed row", "row 1"),
        ("text,label\n", "no rows", "t.csv"),
        ("\n\n", "no rows", "t.csv"),
        ("a red apple,fruit\n", "no rows", "t.csv"),
        ("a red apple,fruit\na pear,fruit\n", "missing column", "t.csv"),
    ],
)
def test_what_is_no_row_of_csv_is_named(content, kind, where, tmp_path):
    found = look(put(tmp_path / "t.csv", content), "text")
    assert (kind, where) in [(k, w.rpartition("t.csv, ")[2]) for k, w in refused(found)]


@pytest.mark.parametrize("name", ["t.xlsx", "t.csv.gz", "t.zip", "t.sqlite", "t"])
def test_a_file_of_another_kind_is_refused_in_words(name, tmp_path):
    (finding,) = look(put(tmp_path / name, b"PK\3\4"), "text").refused
    assert finding.kind == "malformed file" and ".csv" in finding.what


# -- cells -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell, texts",
    [("a", ["a"]), (" a\n", ["a"]), (None, []), (float("nan"), []), ("", []), (["a", " b"], ["a", "b"]), ([], [])]
    + [(b"caf\xc3\xa9", ["café"])],
)
def test_texts_of_a_cell(cell, texts):
    assert texts_of(cell) == texts


@pytest.mark.parametrize("cell", [5, 1.5, True, {"en": "a"}, [1], ["a", None], ["a", ["b"]], b"\xff", "\ud83d", [""]])
def test_a_cell_that_is_no_text_is_refused_and_says_what_it_is(cell):
    with pytest.raises(BadCell):
        texts_of(cell)


@pytest.mark.parametrize("cell, label", [("fruit", "fruit"), (3, 3), (3.0, 3), (True, "True"), (b"fruit", "fruit")])
def test_labels_of_a_cell(cell, label):
    assert label_of(cell) == label


@pytest.mark.parametrize("cell", [None, float("nan"), "", " ", 1.5, ["fruit"], {"a": 1}, "x" * 300, float("inf")])
def test_a_cell_that_is_no_label_is_refused(cell):
    with pytest.raises(BadCell):
        label_of(cell)


@pytest.mark.parametrize(
    "cell, id_", [(1, 1), ("1", 1), (1.0, 1), ("007", "007"), (" x ", "x"), (None, None), ("", None)]
)
def test_ids_of_a_cell(cell, id_):
    assert id_of(cell) == id_
    assert id_of(2**64) == str(2**64)


def test_cells_of_every_arrow_type_are_read_or_refused_by_name(tmp_path):
    arrays = {
        "dictionary": (pa.array(["a b"]).dictionary_encode(), True),
        "large": (pa.array(["a b"], pa.large_string()), True),
        "view": (pa.array(["a b"], pa.string_view()), True),
        "binary": (pa.array([b"a b"], pa.binary()), True),
        "list": (pa.array([["a b"]]), True),
        "int": (pa.array([5]), False),
        "float": (pa.array([1.5]), False),
        "bool": (pa.array([True]), False),
        "null": (pa.nulls(1), False),
        "time": (pa.array([10**9], pa.timestamp("ns")), False),
        "date": (pa.array([1], pa.date32()), False),
        "decimal": (pa.array([decimal.Decimal("1.50")]), False),
        "struct": (pa.array([{"a": 1}]), False),
        "map": (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), False),
    }
    for name, (array, well) in arrays.items():
        file = parquet(tmp_path / f"{name}.parquet", {"text": array, "label": ["fruit"]})
        found = look(file, "text")
        if well:
            assert found.whole().texts == ("a b",), name
        else:
            ((kind, where),) = refused(found)
            assert kind in ("no text", "empty text") and where == f"{name}.parquet, row 1", name


def test_missing_and_numbered_labels_of_parquet(tmp_path):
    parquet(tmp_path / "t.parquet", {"text": ["a", "b", "c"], "label": [0.0, 1.0, float("nan")]})
    found = look(tmp_path / "t.parquet", "text", classes=("0", "1"))
    assert refused(found) == [("no label", "t.parquet, row 3")] and found.rows.labels.tolist() == [0, 1]


def test_columns_that_nobody_asks_for_are_not_looked_at(tmp_path):
    extra = pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))
    parquet(tmp_path / "t.parquet", {"text": ["a red apple"], "label": ["fruit"], "extra": extra})
    assert labels(look(tmp_path / "t.parquet", "text")) == ["fruit"]
    row = {"text": "a", "label": "fruit", "extra": "\ud83d", "image": 5, "tags": 3, "modality": "image", "part": "x"}
    assert labels(look(put(tmp_path / "t.jsonl", [row]), "text")) == ["fruit"]


def test_every_row_is_kept_whatever_other_columns_are_called(tmp_path):
    for column in ("concept", "modality", "part", "style", "tags"):
        put(tmp_path / "t.csv", f"text,label,{column}\na,fruit,x\nb,fruit,x\nc,aircraft,public\nd,aircraft,text\n")
        assert look(tmp_path / "t.csv", "text").whole().texts == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    "cell",
    [5, ["a.png"], "https://example.org/a.png", "data:image/png;base64,AAAA", "a\0b.png", "\ud83d.png", ".", "x" * 9000]
    + ["gone.png", "/dev/zero", None, {"bytes": None, "path": None}, {"path": "gone.png"}],
)
def test_a_cell_that_is_no_image_is_refused(cell, tmp_path):
    put(tmp_path / "t.jsonl", [{"image": cell, "label": "fruit"}])
    assert refused(look(tmp_path / "t.jsonl")) == [("missing image", "t.jsonl, row 1")]


# -- ids: one rule -----------------------------------------------------------------------------------------------------


def writers(tmp_path, rows):
    """The same rows in every format."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    text = "".join(",".join("" if cell is None else str(cell) for cell in row.values()) + "\n" for row in rows)
    yield put(tmp_path / "t.csv", ",".join(rows[0]) + "\n" + text)
    yield put(tmp_path / "t.jsonl", rows)
    yield put(tmp_path / "t.json", json.dumps(rows))
    yield parquet(tmp_path / "t.parquet", columns)
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "saved"))
    yield tmp_path / "saved"


@pytest.mark.parametrize(
    "ids, numbers",
    [
        ([1, 1], None),
        ([7, 3], [7, 3]),
        ([1, None], [0, 1]),
        ([None, 1], [0, 1]),
        (["x", "x"], None),
        (["x", "y"], [0, 1]),
    ],
)
def test_ids_are_read_alike_in_every_format(ids, numbers, tmp_path):
    rows = [{"id": id_, "text": text, "label": "fruit"} for id_, text in zip(ids, ("a", "b"), strict=True)]
    for place in writers(tmp_path, rows):
        found = look(place, "text")
        if numbers is None:
            assert [kind for kind, _ in refused(found)] == ["same id"], place
            assert refused(found)[0][1].endswith("row 2")
        else:
            assert found.whole().ids.tolist() == numbers, place


# -- splits and parts --------------------------------------------------------------------------------------------------


def test_a_column_that_names_the_split(tmp_path):
    for column in ("split", "Usage", "subset"):
        text = f"text,label,{column}\na,fruit,Training\nb,fruit,PublicTest\nc,aircraft,training\n"
        found = look(put(tmp_path / "t.csv", text), "text")
        assert found.whole().texts == ("a", "c") and warned(found) == {"split"}
        assert look(tmp_path / "t.csv", "text", split="test").whole().texts == ("b",)
    put(tmp_path / "t.csv", "text,label,set\na,fruit,blue\nb,fruit,red\n")
    assert len(look(tmp_path / "t.csv", "text").whole()) == 2
    put(tmp_path / "t.csv", "text,label,split\na,fruit,train\nb,fruit,\n")
    assert refused(look(tmp_path / "t.csv", "text")) == [("split", "t.csv, row 2")]


def test_parts_of_a_table_are_one_table(tmp_path):
    for n, text in enumerate(("a", "b")):
        parquet(tmp_path / "hub" / "data" / f"train-{n:05}-of-00002.parquet", {"text": [text], "label": ["fruit"]})
    parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", {"text": ["c"], "label": ["fruit"]})
    put(tmp_path / "hub" / "README.md", "what it is")
    found = look(tmp_path / "hub", "text")
    assert found.whole().texts == ("a", "b") and warned(found) == {"split"}
    (tmp_path / "hub" / "data" / "train-00000-of-00002.parquet").unlink()
    assert warned(look(tmp_path / "hub", "text")) == {"split", "parts"}
    assert warned(look(tmp_path / "hub" / "data" / "train-00001-of-00002.parquet", "text")) == {"parts"}
    put(tmp_path / "kaggle" / "train.csv", APPLE)
    put(tmp_path / "kaggle" / "test.csv", "text,label\nb,fruit\n")
    assert look(tmp_path / "kaggle", "text").whole().texts == ("a red apple",)
    put(tmp_path / "spark" / "part-00000.csv", APPLE), put(tmp_path / "spark" / "part-00001.csv", APPLE)
    put(tmp_path / "spark" / "_SUCCESS", "")
    assert len(look(tmp_path / "spark", "text").whole()) == 2
    put(tmp_path / "two" / "a.csv", APPLE), put(tmp_path / "two" / "b.csv", APPLE)
    assert [kind for kind, _ in refused(look(tmp_path / "two", "text"))] == ["no rows"]
    put(tmp_path / "one" / "notes.csv", APPLE)
    assert labels(look(tmp_path / "one", "text")) == ["fruit"]


def test_saved_data_sets_with_splits_of_any_spelling_and_a_format(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["fruit", "aircraft"], "other": [1, 2]})
    both = datasets.DatasetDict({"Train": rows.with_format("torch"), "Test": rows.select([1])})
    both.save_to_disk(str(tmp_path / "both"))
    found = look(tmp_path / "both", "text")
    assert labels(found) == ["fruit", "aircraft"] and warned(found) == {"split"}
    assert labels(look(tmp_path / "both", "text", split="test")) == ["aircraft"]
    rows.select([1, 0]).save_to_disk(str(tmp_path / "turned"))
    assert look(tmp_path / "turned", "text").whole().texts == ("b", "a")
    datasets.DatasetDict({"a": rows, "b": rows}).save_to_disk(str(tmp_path / "odd"))
    assert [kind for kind, _ in refused(look(tmp_path / "odd", "text"))] == ["no split"]


def test_one_stored_value_for_many_rows_of_parquet_is_read_piece_by_piece(tmp_path):
    """A bomb: 800 rows of one text of 1 MB are a few kilobytes in the file and 800 MB in memory."""
    import resource

    long = pa.DictionaryArray.from_arrays(pa.array(np.zeros(800, np.int32)), pa.array(["x" * (1 << 20)]))
    schema = {"text": pa.array(["a"]).dictionary_encode(), "label": ["fruit"]}
    file = parquet(tmp_path / "t.parquet", schema | {"text": long, "label": ["none"] * 800})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = look(file, "text")
    assert found.found == 800 and (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 500


def test_pictures_in_tables(tmp_path):
    parquet(
        tmp_path / "t.parquet",
        {
            "image": [{"bytes": picture(1), "path": "a.png"}, {"bytes": picture(2), "path": None}],
            "label": ["fruit"] * 2,
        },
    )
    parquet(tmp_path / "u.parquet", {"image": [picture(1), picture(2)], "label": ["fruit", "aircraft"]})
    assert labels(look(tmp_path / "t.parquet")) == ["fruit", "fruit"]
    assert labels(look(tmp_path / "u.parquet")) == ["fruit", "aircraft"] and CLASSES[0] == "fruit"
