"""A disk that fills up while a file is written: the file before stays whole, the error is one line with the path.

The kernel refuses the writes: RLIMIT_FSIZE in a process of its own, at different sizes. A disk that is full only when
data is flushed, or when the file is renamed, is played by an os function that fails.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from client_app.memory import Memory
from florilegium.runs import files
from florilegium.runs.reader import read_lines
from florilegium.runs.writer import Run, RunError
from tests.synthetic_run import conf
from tests.tiers import first


def limited(path: str, size: int, limit: int, answer) -> None:
    """In another process, where no file may grow beyond `limit` bytes: save `size` numbers to `path`, say the error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        files.save(path, {"w": torch.full((size,), 2.0)})
        answer.put("written")
    except OSError as error:
        answer.put(str(error))


@pytest.mark.parametrize("limit", first([0, 4096, 1, 100, 40_000], 2))
def test_the_checkpoint_before_stays_whole_wherever_the_disk_ends(limit: int, tmp_path: Path) -> None:
    path = tmp_path / "round-0003.safetensors"
    files.save(path, {"w": torch.ones(3)}, {"round": 2})
    context = multiprocessing.get_context("forkserver")
    answer = context.Queue()
    process = context.Process(target=limited, args=(str(path), 20_000, limit, answer))  # 80 kB and a header
    process.start()
    said = answer.get(timeout=120)
    process.join(60)
    assert said == f"cannot write {path} (File too large); what was there before is whole"
    tensors, meta = files.load(path)
    assert tensors["w"].tolist() == [1, 1, 1] and meta == {"round": 2}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing half written is left


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("before", [True, False])
def test_a_disk_that_is_full_at_the_flush_or_the_rename(where, before, tmp_path, monkeypatch) -> None:
    path = tmp_path / "model.safetensors"
    if before:
        files.save(path, {"w": torch.ones(1)})
    monkeypatch.setattr(os, where, full)
    with pytest.raises(files.WriteError) as caught:
        files.save(path, {"w": torch.zeros(1)})
    kept = "; what was there before is whole" if before else ""
    assert str(caught.value) == f"cannot write {path} (No space left on device){kept}"
    assert caught.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == ([path] if before else [])
    if before:
        assert files.load(path)[0]["w"].tolist() == [1]


def test_a_line_that_does_not_fit_is_taken_back_whole(tmp_path, monkeypatch) -> None:
    run = Run.open(tmp_path / "run", conf())
    run.record("method", 0, 1.0, {"loss": 1.0})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"cannot write .*rounds.jsonl \(No space left on device\)") as caught:
        run.record("method", 1, 1.0, {"loss": 2.0})
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    run.record("method", 1, 1.0, {"loss": 3.0})
    assert [x["metrics"]["loss"] for x in read_lines(run.out / "rounds.jsonl")] == [1.0, 3.0]
    assert [json.loads(x)["round"] for x in (run.out / "rounds.jsonl").read_text().splitlines()] == [0, 1]


def test_a_client_whose_disk_is_full_keeps_the_model_it_had(tmp_path, monkeypatch) -> None:
    Memory(tmp_path, 1, 1).write("model", {"w": torch.ones(1)})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(files.WriteError, match="No space left on device"):
            Memory(tmp_path, 2, 1).write("model", {"w": torch.zeros(1)})
    assert Memory(tmp_path, 2, 1).read("model")[0]["w"].tolist() == [1]


def test_the_run_ends_with_one_line_and_resumes_when_there_is_room(toy_conf, federated, monkeypatch, tmp_path) -> None:
    """The server's second checkpoint does not fit; after room was made, resume ends with the same numbers."""
    given = ("method=standalone", "rounds=2", "method.client.pretrain_epochs=1", "evaluation.images_per_class=1")
    federated(toy_conf(*given, f"out={tmp_path / 'calm'}"))
    narrow = toy_conf(*given, f"out={tmp_path / 'narrow'}")
    flush = os.fsync

    def filling(file: int) -> None:
        if "round-0001" in os.readlink(f"/proc/self/fd/{file}"):
            full()
        flush(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", filling)
        with pytest.raises(files.WriteError) as caught:
            federated(narrow)
    place = tmp_path / "narrow/checkpoints/method"
    assert str(caught.value) == f"cannot write {place / 'round-0001.safetensors'} (No space left on device)"
    assert [p.name for p in place.iterdir()] == ["round-0000.safetensors"]
    assert files.load(place / "round-0000.safetensors")
    narrow.resume = True
    federated(narrow)
    told = [
        [(x["round"], x["metrics"]) for x in read_lines(tmp_path / run / "rounds.jsonl")] for run in ("calm", "narrow")
    ]
    assert told[0] == told[1] and len(told[0]) == 3


@pytest.mark.faults
def test_a_real_full_disk(tmp_path) -> None:
    """A tmpfs of 256 kB, where this machine lets us mount one."""
    import subprocess

    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        files.save(place / "round-0001.safetensors", {"w": torch.ones(30_000)})  # 120 kB
        with pytest.raises(files.WriteError, match="round-0002.safetensors .No space left on device"):
            files.save(place / "round-0002.safetensors", {"w": torch.ones(60_000)})  # 240 kB more
        assert [p.name for p in place.iterdir()] == ["round-0001.safetensors"]
        assert files.load(place / "round-0001.safetensors")[0]["w"].sum() == 30_000
    finally:
        subprocess.run(["umount", str(place)], check=True)
