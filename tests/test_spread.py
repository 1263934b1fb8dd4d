"""Images that Ray tasks draw are those of one process, also when a worker is lost."""

import os
import signal

import pytest
import torch

from florilegium.config.diffusion import DiffusionSettings, TuneSettings
from florilegium.config.run import WorkerSettings
from florilegium.contract.tiny_models import SIDE, tiny_models
from florilegium.diffusion import spread
from florilegium.diffusion.load import load
from florilegium.diffusion.tuning import TuneTexts

PROMPTS, SEEDS = ["a red cat.", "a blue dog.", "a tree.", "a house.", "a cat."], [11, 22, 33, 44, 55]


@pytest.fixture
def tuned():
    settings = DiffusionSettings(steps=2, batch=2)
    place = str(tiny_models()["model"])
    made = load(settings, place)
    images = torch.randint(0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    texts = TuneTexts(["a 0.", "a 1.", "a 2.", "a 0."], ["a red 0.", "a 1.", "a 2.", "a 0."])
    made.finetune(images, texts, None, TuneSettings(steps=2), rounds=(1, 1), seed=3)
    return spread.Spread(made, settings, place, WorkerSettings(count=2)), made


def test_shares_are_the_batches_of_one_process():
    latents = torch.arange(5.0)[:, None]
    shares = spread.shares_of(PROMPTS, SEEDS, latents, 2)
    assert [share[0] for share in shares] == [PROMPTS[:2], PROMPTS[2:4], PROMPTS[4:]]
    assert [share[1] for share in shares] == [[11, 22], [33, 44], [55]]
    assert [share[2].flatten().tolist() for share in shares] == [[0, 1], [2, 3], [4]]


def test_two_workers_draw_the_same_images_and_a_lost_share_again(tuned, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    shared, alone = tuned
    expected, untuned = alone.synthesize(PROMPTS, SEEDS), load(alone.settings, alone.model).synthesize(PROMPTS, SEEDS)
    draw, lost, who = spread.drawn_by_worker, str(tmp_path / "lost"), str(tmp_path)

    def mortal(given, state, share, guidance):
        open(f"{who}/{os.getpid()}", "w").close()
        if share[1] == [33, 44] and not os.path.exists(lost):
            open(lost, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(given, state, share, guidance)

    monkeypatch.setattr(spread, "drawn_by_worker", mortal)
    told = []
    try:
        found = shared.synthesize(PROMPTS, SEEDS, progress=lambda done, total: told.append((done, total)))
    finally:
        ray.shutdown()
    assert torch.equal(found, expected) and not torch.equal(expected, untuned)
    assert os.path.exists(lost) and told[-1] == (5, 5) and len(told) == 3
    assert len([name for name in os.listdir(who) if name.isdigit()]) >= 2
