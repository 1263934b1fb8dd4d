"""Every experiment of a paper composes: each key, choice and value that it names is there. Half a minute in all; a file
of its own, so that another process of the tests takes it."""

from __future__ import annotations

import pytest

from florilegium.config import composition
from tests.full.test_experiments import EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes(name: str) -> None:
    """All sections of all arms are typed, so an unknown key or a value out of range would raise."""
    conf = composition.compose([f"experiment={name}"])
    arms = conf.arms()
    paper, _, table = name.partition("/")  # Table VII of FedMMKT has a method a file
    assert arms["method"].name in (paper, table.removeprefix("table7_")) and conf.label
    assert conf.rounds > 0 and len(conf.clients.mix) >= 4
    assert all(arm.server is not None for arm in arms.values())


def test_an_experiment_with_a_wrong_key_does_not_compose() -> None:
    with pytest.raises(composition.SettingsError, match="no_such_key"):
        composition.compose([f"experiment={EXPERIMENTS[0]}", "+method.server.no_such_key=1"])
