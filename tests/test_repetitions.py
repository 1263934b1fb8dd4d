"""What a repetition draws again: each of it depends on `seed`, and on nothing else that differs between two runs."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from florilegium import seeds
from florilegium.config.composition import compose
from florilegium.data.partition import partition
from florilegium.data.public import open_public
from florilegium.federation.federation import Federation
from florilegium.models import build
from florilegium.resources import Resources
from server_app.evaluation import Evaluation
from strategies.blocks.public_set import PublicSet
from strategies.blocks.synthesis import draw_classes


def cohorts(conf: Any) -> list[list[int]]:
    """The cohorts of eight rounds: half of ten clients each."""
    federation = Federation(SimpleNamespace(), "method", seed=conf.seed, quorum=1, fraction=0.5, expected=10)
    federation.clients, federation.follow = list(range(10)), lambda: None
    found = []
    for r in range(8):
        federation.begin(r)
        found.append(list(federation.cohort))
    return found


def starts(conf: Any) -> list[float]:
    """The first client's model before any training, as client_app/client.py builds it."""
    with seeds.scoped(conf.seed, "model", 0, "resnet"):
        return next(build.build(conf.clients, "image", "resnet", 4, None).parameters()).flatten().tolist()


def proxy_rows(conf: Any) -> list[int]:
    settings = SimpleNamespace(source="proxy", samples=12, fresh=True, replay=0)
    return PublicSet(settings, Resources(conf)).chosen(1).tolist()


DRAWN: dict[str, Callable[[Any], Any]] = {
    "partition": lambda conf: [client["rows"] for client in partition(conf)["clients"]],
    "cohorts": cohorts,
    "starts of models": starts,
    "public pairs": lambda conf: open_public(conf).ids.tolist(),
    "public samples of a round": proxy_rows,
    "classes of synthetic samples": lambda conf: draw_classes(4, 24, "uniform", Resources(conf).seed, 1).tolist(),
    "noise of the evaluation": lambda conf: Evaluation(conf, Resources(conf)).noise,
    "noise of features, negatives and anchors": lambda conf: conf.method.client.guidance.noise_seed,
    "attackers": lambda conf: conf.attack.attackers(10, conf.seed),
}


@pytest.mark.parametrize("what", DRAWN)
def test_another_seed_draws_it_again(what: str, toy_conf) -> None:
    given = ["data.public.pairs=20", "attack.kind=label_flip", "guidance@method.client.guidance=semanticfl"]
    one, again, other = (toy_conf("method=fedavg", *given, f"seed={seed}") for seed in (0, 0, 1))
    assert DRAWN[what](one) == DRAWN[what](again)
    assert DRAWN[what](one) != DRAWN[what](other)


def test_seed_0_draws_the_public_pairs_that_it_always_drew(toy_conf) -> None:
    assert torch.equal(
        open_public(toy_conf("data.public.pairs=20", "seed=0")).ids,
        open_public(toy_conf("data.public.pairs=20", "seed=3", "data.public.seed=0")).ids,
    )


def test_the_noise_of_features_follows_the_seed_unless_it_is_given() -> None:
    given = ["method=fedavg", "guidance@method.client.guidance=both"]
    assert compose([*given, "seed=5"]).method.client.guidance.noise_seed == 5
    assert compose([*given, "seed=5"]).method.server.guidance.noise_seed == 5
    assert compose([*given, "seed=5", "method.client.guidance.noise_seed=2"]).method.client.guidance.noise_seed == 2
