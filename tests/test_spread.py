"""Images that Ray tasks draw, and features that they extract, are those of one process, also when a worker is lost."""

import os
import signal

import pytest
import torch

from florilegium.config.diffusion import DiffusionSettings, FeatureSettings, TuneSettings
from florilegium.config.run import WorkerSettings
from florilegium.contract.tiny_models import SIDE, tiny_models
from florilegium.diffusion import spread
from florilegium.diffusion.features import FeatureExtractor
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


def features():
    """(arguments of `pairs`, of `levels`, the extractor of one process, the one that asks workers): batches of 2."""
    given = FeatureSettings(layers=[1, 2], dims=[4, 4], calibration=100, batch=2)
    settings, place = DiffusionSettings(steps=2, features=given), str(tiny_models()["model"])
    images = torch.randint(0, 256, (5, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
    ids, rows = torch.arange(5), torch.tensor([[4, 0], [0, 1], [3, 0], [1, 1], [0, 0], [2, 1], [4, 1]])
    alone = FeatureExtractor(place, settings)
    asked = (images, ids, ["", "a red cat."], rows, alone.fit(images, ids, seed=0), 3)
    return asked, (images, ids, 150, 3), alone, spread.SpreadExtractor(place, settings, WorkerSettings(count=2))


def test_a_share_of_features_is_a_batch_of_images_with_its_rows(monkeypatch):
    """Without Ray: each share alone gives the rows of the whole, and they come in any order."""
    asked, leveled, alone, shared = features()
    sizes = []

    def here(settings, work, known, shares, what):
        sizes.append([len(share["ids"]) for share in shares])
        yield from reversed([(n, work(known, share)) for n, share in enumerate(shares)])

    monkeypatch.setattr(spread, "done_by_workers", here)
    expected = alone.pairs(*asked)
    assert torch.equal(shared.pairs(*asked), expected) and shared.passes == 7  # the fit asked `alone` for five more
    found, expected = shared.levels(*leveled), alone.levels(*leveled)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert sizes == [[2, 2, 1], [2, 2, 1]]
    which = torch.tensor([[0, 1]]).repeat(5, 1)
    conditional = [each.conditional(*asked[:3], which, *asked[4:]) for each in (shared, alone)]
    assert torch.equal(*conditional) and len(sizes) == 3


@pytest.mark.long
def test_two_workers_make_the_same_images_and_features_and_a_lost_share_again(tuned, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    shared, alone = tuned
    expected, untuned = alone.synthesize(PROMPTS, SEEDS), load(alone.settings, alone.model).synthesize(PROMPTS, SEEDS)
    draw, lost, who = spread.drawn_by_worker, str(tmp_path / "lost"), str(tmp_path)

    def mortal(known, share):
        open(f"{who}/{os.getpid()}", "w").close()
        if share[1] == [33, 44] and not os.path.exists(lost):
            open(lost, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(known, share)

    monkeypatch.setattr(spread, "drawn_by_worker", mortal)
    told = []
    asked, _, one_process, workers = features()
    try:
        found = shared.synthesize(PROMPTS, SEEDS, progress=lambda done, total: told.append((done, total)))
        seen = workers.pairs(*asked)
    finally:
        ray.shutdown()
    assert torch.equal(found, expected) and not torch.equal(expected, untuned)
    assert torch.equal(seen, one_process.pairs(*asked))
    assert os.path.exists(lost) and told[-1] == (5, 5) and len(told) == 3
    assert len([name for name in os.listdir(who) if name.isdigit()]) >= 2
