"""Two processes that share each step of tuning give the weights of one; a lost one costs a round nothing but time."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from florilegium.config.diffusion import DiffusionSettings, TuneSettings
from florilegium.config.errors import SettingsError
from florilegium.contract.tiny_models import SIDE, tiny_models
from florilegium.diffusion import tuning_processes
from florilegium.diffusion.load import load
from florilegium.diffusion.tuning import TuneTexts
from florilegium.diffusion.tuning_processes import Part, TuningProcesses, check_devices, why

SETTINGS = DiffusionSettings(steps=2, batch=2, device="cpu")
# 4 samples in batches of 3: the last batch of a pass has one row, so the first of two processes has none
TUNING = TuneSettings(merge="token", epochs=2, batch=3, lora=2, checkpointing=True)


def tune(shared: bool, rounds: int, heard=None):
    """State and figures after round 1 without representations in one process, then so many rounds with them."""
    place = str(tiny_models()["model"])
    made = load(SETTINGS, place)
    images = torch.randint(0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    texts = TuneTexts(["a 0.", "a 1.", "a 2.", "a 0."], ["a red 0.", "a 1.", "a 2.", "a 0."])
    shown = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    made.finetune(images, texts, None, TUNING, rounds=(1, 3), seed=3)
    if shared:
        made.steps = TuningProcesses(SETTINGS, place, 2)
    told = {}
    for r in range(rounds):
        told = made.finetune(images, texts, shown, TUNING, rounds=(r + 2, 3), seed=3, progress=heard)
    return *made.state(), told


@pytest.mark.long
def test_two_processes_give_the_weights_moments_and_average_of_one():
    heard = []
    one, meta, told = tune(False, 1)
    two, meta_two, told_two = tune(True, 1, lambda done, total: heard.append((done, total)))
    assert meta == meta_two and meta["step"] == 8 and one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-5, msg=name)
    assert told_two == pytest.approx(told, abs=1e-6) and 0 < told["t2i/omitted"] < 1
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]


def instead(monkeypatch, code: str):
    """Another program in the place of the processes; it gets the folder of the task."""

    @contextmanager
    def started(count, folder, environment, log):
        with subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, stderr=log, text=True) as p:
            yield p

    monkeypatch.setattr(tuning_processes, "started", started)


def test_where_a_process_is_lost_the_server_takes_the_same_steps_alone(monkeypatch, caplog):
    instead(monkeypatch, f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")
    one, two = tune(False, 2), tune(True, 2)
    assert all(torch.equal(two[0][name], value) for name, value in one[0].items()) and one[1:] == two[1:]
    said = [record.getMessage() for record in caplog.records if "runtime.workers.tuning" in record.getMessage()]
    assert len(said) == 2 and "the server's own process tunes in this round" in said[0] and "\n" not in said[0]


def test_an_error_of_a_process_is_the_error_of_the_round(monkeypatch):
    told = json.dumps(["FloatingPointError", "the T2I loss is nan at step 4; lower the learning rate"])
    instead(monkeypatch, f"import sys; open(sys.argv[1] + '/error-1', 'w').write({told!r}); sys.exit(1)")
    with pytest.raises(FloatingPointError, match="^the T2I loss is nan at step 4; lower the learning rate$"):
        tune(True, 1)


@pytest.mark.parametrize(
    "count, rows, weights",
    [(7, [(0, 2), (2, 4), (4, 7)], [6 / 7, 6 / 7, 9 / 7]), (2, [(0, 1), (0, 1), (1, 2)], [0, 1.5, 1.5])],
)
def test_rows_and_weights_of_three_processes_by_hand(count, rows, weights):
    """The mean over 3 processes of weight times mean loss is the mean over all rows: 2 / 7 = 6 / 7 / 3."""
    parts = [Part(SimpleNamespace(process_index=rank, num_processes=3)).rows(count) for rank in range(3)]
    assert [(part.start, part.stop) for part, _ in parts] == rows
    assert [weight for _, weight in parts] == pytest.approx(weights)


def test_devices_that_cannot_be_shared_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices("auto", 2)
    with pytest.raises(SettingsError, match="^runtime.workers.tuning is 3, but this machine has 2 GPUs$"):
        check_devices("cuda", 3)
    with pytest.raises(SettingsError, match="needs diffusion.device=cuda or cpu, not cuda:1"):
        check_devices("cuda:1", 2)


def test_the_reason_of_a_loss_is_one_line():
    log = "[rank1]: Traceback\n[rank1]: RuntimeError: NCCL error\n  rank : 1\n  exitcode  : -9 (pid: 7)\n"
    assert why(log) == "exit code -9; RuntimeError: NCCL error"
    assert why("first\nlast\n") == "last" and why("") == "it said nothing" and os.linesep not in why(log)
