"""Overrides as people type them: paths, names with spaces, brackets, quotes and equal signs arrive unchanged."""

from __future__ import annotations

import pytest

from florilegium.config import overrides


@pytest.mark.parametrize(
    "value",
    [
        "~/runs/x",
        "My Drive (1)",
        "a=b",
        "it's",
        'a "quoted" name',
        "50% done",
        "runs/a,b",
        "a\\b",
        "a\\",
        "\\'",
        "née",
        "runs/2026-11-26 [new]",
        "{x}",
        "$HOME/x",
        "a:b",
        "C:\\runs\\x",
        "x'y\"z",
    ],
)
def test_a_value_arrives_as_it_was_typed(value) -> None:
    (text,) = overrides.readable([f"out={value}"])
    found = overrides.parser().parse_override(text)
    assert found.key_or_group == "out" and str(found.value()) == value


@pytest.mark.parametrize("text", ["rounds=3", "method=fedavg", "clients.mix=[{modality: image, model: vit}]", "-m"])
def test_what_hydra_reads_stays_as_it_is(text) -> None:
    assert overrides.readable([text]) == [text]


def test_commas_are_a_sweep_only_where_one_was_asked_for() -> None:
    assert overrides.readable(["seed=0,1"], sweeping=True) == ["seed=0,1"]
    assert overrides.parser().parse_override(overrides.readable(["label=a,b"])[0]).value() == "a,b"
    assert overrides.jobs(["seed=0,1", "method=fedavg,moon"]) == [
        ["seed=0", "method=fedavg"],
        ["seed=0", "method=moon"],
        ["seed=1", "method=fedavg"],
        ["seed=1", "method=moon"],
    ]


@pytest.mark.parametrize(
    ("text", "key"), [("+a.b=1", "a.b"), ("~a", "a"), ("partition@clients.partition=x", "partition")]
)
def test_the_key_of_an_override(text, key) -> None:
    assert overrides.key_of(text) == key
