"""Broken files of every format: a reader refuses them or reads them; it does not crash, hang or fill the memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.field.mutations import FORMATS

ROOT = Path(__file__).resolve().parents[2]
MOST_MB = 1024
MANY, FEW = 2000, 40


def looked(form, count, seed):
    """What the process that looked at `count` broken files printed. A hang ends it."""
    command = [sys.executable, "-m", "tests.field.mutations", form, str(count), str(seed)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("form", ["png", "jpg", "webp", "csv", "jsonl", "parquet", "saved"])
def test_a_few_broken_files(form):
    found = looked(form, FEW, 3)
    assert found["looked"] == FEW and found["refused"] > 0  # memory: below, where no other test came before


@pytest.mark.faults
@pytest.mark.parametrize("form", FORMATS)
def test_two_thousand_broken_files(form):
    found = looked(form, MANY, 4)
    assert found["looked"] == MANY and found["refused"] > MANY // 5 and found["highest"] <= MOST_MB
