"""Broken files of every format: a reader refuses them or reads them; it does not crash, hang or fill the memory."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.field.inputs import put
from tests.field.mutations import FORMATS
from tests.tiers import first

ROOT = Path(__file__).resolve().parents[2]
MOST_MB = 1024
MANY, FEW = 2000, 40


def looked(form, count, seed):
    """What the process that looked at `count` broken files printed. A hang ends it."""
    return printed("-m", "tests.field.mutations", form, str(count), str(seed))


def printed(*arguments):
    """The last line of a new Python process, as JSON."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("form", first(["png", "csv", "jpg", "webp", "jsonl", "parquet", "saved"], 2))
def test_a_few_broken_files(form):
    found = looked(form, FEW, 3)
    assert found["looked"] == FEW and found["refused"] > 0 and found["highest"] <= MOST_MB


@pytest.mark.faults
@pytest.mark.parametrize("form", FORMATS)
def test_two_thousand_broken_files(form):
    found = looked(form, MANY, 4)
    assert found["looked"] == MANY and found["refused"] > MANY // 5 and found["highest"] <= MOST_MB


LOOK = """
import json, sys
from tests.field.inputs import look
from tests.field.mutations import highest_mb
from tests.tiers import first
found = look(sys.argv[1])
print(json.dumps([len(found.rows), [finding.kind for finding in found.refused], highest_mb()]))
"""


@pytest.mark.faults
@pytest.mark.parametrize(
    "form, mode, size, read",
    [
        ("png", "RGBA", (8192, 8192), True),
        ("png", "P", (8192, 8192), True),
        ("png", "I;16", (8192, 8192), True),
        ("png", "RGBA", (65536, 1024), True),
        ("png", "L", (65537, 2), False),
        ("png", "L", (8193, 8192), False),
        ("tif", "F", (8192, 8192), True),
        ("gif", "P", (8192, 8192), True),
        ("jpg", "CMYK", (8192, 8192), True),
        ("webp", "RGB", (4096, 4096), True),
        ("webp", "RGB", (4097, 4096), False),
    ],
)
def test_the_largest_picture_of_each_kind_fits_into_the_memory(form, mode, size, read, tmp_path):
    buffer = io.BytesIO()
    webp = {"lossless": True, "quality": 0, "method": 0}
    how = {"png": {"compress_level": 1}, "tif": {"compression": "tiff_deflate"}, "webp": webp}.get(form, {})
    picture = Image.fromarray(np.zeros(size[::-1], np.uint16)) if mode == "I;16" else Image.new(mode, size)
    picture.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(form, form.upper()), **how)
    put(tmp_path / "fruit" / f"a.{form}", buffer.getvalue())
    rows, kinds, highest = printed("-c", LOOK, str(tmp_path))
    assert (rows, kinds) == ((1, []) if read else (0, ["image too large"])) and highest <= MOST_MB
