"""Breaks files in many ways and looks at them as a client does: python -m tests.field.mutations FORMAT COUNT SEED.

Prints one line of JSON: how many were looked at, how many of them were refused, and the highest memory in MB. It ends
with an error when a reader raises anything, or says what it found in a line that is too long.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.field.inputs import look, picture, put

PICTURES = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF"}
FORMATS = (*PICTURES, "csv", "jsonl", "json", "parquet", "saved", "metadata", "sidecar", "embedded")
MODALITIES = {
    "metadata": ("pair", "text"),
    "sidecar": ("pair",),
    "parquet": ("image", "text"),
    "embedded": ("image", "text"),
}
SPECIAL = (b"\0", b"\xff", b"\n", b'"', b",", b"\\ud800", b"\xff\xff\xff\x7f", b"\xff" * 8, b"\0" * 8, b"[" * 3000)


def rows() -> list[dict]:
    """Texts, two labels and ids."""
    return [{"id": n, "text": f"a text of {n}, long", "label": ("fruit", "aircraft")[n % 2]} for n in range(20)]


def written(place: Path, form: str) -> list[Path]:
    """Data of a format, whole; the files that are to be broken."""
    if form in PICTURES:
        (place / "fruit").mkdir(parents=True)
        (place / "fruit" / f"a.{form}").write_bytes(picture(1, PICTURES[form]))
        exif = Image.Exif()
        exif[0x0112] = 6
        buffer = io.BytesIO()
        deep = np.arange(400, dtype=np.uint16).reshape(20, 20) * 100
        Image.fromarray(deep if form in ("png", "tif") else deep.astype(np.uint8)).save(
            buffer, PICTURES[form], **({"exif": exif} if form in ("png", "jpg", "webp", "tif") else {})
        )
        (place / "fruit" / f"b.{form}").write_bytes(buffer.getvalue())
    elif form == "csv":
        place.mkdir(parents=True)
        cells = "".join(f'{row["id"]},"{row["text"]}",{row["label"]}\n' for row in rows())
        (place / "t.csv").write_text("id,text,label\n" + cells)
    elif form == "jsonl":
        place.mkdir(parents=True)
        (place / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    elif form == "json":
        place.mkdir(parents=True)
        (place / "t.json").write_text(json.dumps(rows(), indent=1))
    elif form in ("parquet", "embedded"):
        place.mkdir(parents=True)
        table = pa.Table.from_pylist([row | {"image": picture(row["id"])} for row in rows()])
        pq.write_table(table, place / ("t.parquet" if form == "parquet" else "train.parquet"))
        if form == "embedded":
            (place / "classes.json").write_text(json.dumps([{"name": "fruit"}, {"name": "aircraft"}]))
    elif form in ("metadata", "sidecar"):
        write_pairs(place, form)
    else:
        datasets.Dataset.from_list(rows()).save_to_disk(str(place))
    return sorted(path for path in place.rglob("*") if path.is_file())


def write_pairs(place: Path, form: str) -> None:
    """Pictures, and their texts in files beside them or in metadata.jsonl."""
    for row in rows():
        put(place / row["label"] / f"{row['id']}.png", row["id"])
        if form == "sidecar":
            put(place / row["label"] / f"{row['id']}.txt", row["text"])
    if form == "metadata":
        put(place / "metadata.jsonl", [row | {"file_name": f"{row['label']}/{row['id']}.png"} for row in rows()])


def broken(data: bytes, random: np.random.Generator) -> bytes:
    """The bytes with one to four changes."""
    found = bytearray(data)
    for _ in range(int(random.integers(1, 5))):
        at = int(random.integers(0, max(len(found), 1)))
        end = at + int(random.integers(1, 40))
        way = int(random.integers(0, 7))
        if way == 0 and found:
            found[at] ^= 1 << int(random.integers(0, 8))
        elif way == 1:
            found = found[:at]
        elif way == 2:
            found[at:end] = random.bytes(end - at)
        elif way == 3:
            found[at:at] = SPECIAL[int(random.integers(0, len(SPECIAL)))]
        elif way == 4:
            del found[at:end]
        elif way == 5:
            found[at:at] = found[at:end] * int(random.integers(1, 30))
        else:
            special = SPECIAL[int(random.integers(0, len(SPECIAL)))]
            found[at : at + len(special)] = special
    return bytes(found)


def main(form: str, count: int, seed: int) -> None:
    random, refused = np.random.default_rng(seed), 0
    modalities = MODALITIES.get(form, ("image",) if form in PICTURES else ("text",))
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch, "own")
        files = [(path.relative_to(place), path.read_bytes()) for path in written(place, form)]
        assert not any(look(place, modality).refused for modality in modalities)  # whole, there is nothing to refuse
        if form == "metadata":  # pictures are broken above
            files = [(name, data) for name, data in files if name.suffix == ".jsonl"]
        for n in range(count):
            name, data = files[int(random.integers(0, len(files)))]
            (place / name).write_bytes(broken(data, random))
            found = look(place, modalities[n % len(modalities)])
            assert all(len(str(finding)) <= 300 and str(finding).isprintable() for finding in found.findings)
            assert bool(found.refused) or len(found.whole()) > 0
            refused += bool(found.refused)
            (place / name).write_bytes(data)
        shutil.rmtree(place)
    print(json.dumps({"looked": count, "refused": refused, "highest": highest_mb()}))


def highest_mb() -> int:
    """The most memory that this process ever had, in MB.

    Linux counts it from the start of the program. `ru_maxrss` would begin with the memory of the parent process.
    """
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
