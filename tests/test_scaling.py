"""docs/scaling.md: its formulas give the bytes that small runs measured, and the page is what the generator makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import scaling
from bench.scaling import EXCHANGES, PAPER, payload_bytes
from florilegium.federation.federation import Federation
from florilegium.protocol.payloads import Adapters, Answers, Features, Logits, Prototypes, Samples, Targets, Weights
from florilegium.runs.reader import read_lines
from tests.test_every_method import toy

N, D, C = 48, 32, 4
PUBLIC = (f"method.server.public.samples={N}", "method.client.pretrain_epochs=1", "tuning.batch=8")


@pytest.fixture
def seen(toy_conf: Callable, federated: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """`seen(method, *overrides)`: (ledger of round 1, {(phase, client): the payload it was sent})."""

    def run(method: str, *overrides: str) -> tuple[list[dict], dict[tuple[str, int], Any]]:
        sent: dict[tuple[str, int], Any] = {}
        send = Federation.send

        def noted(self: Federation, phase: str, payload: Any, *expect: type, **how: Any) -> Any:
            if self.round == 1:
                for client in how.get("clients") or self.cohort:
                    sent[phase, client.id] = payload(client) if callable(payload) else payload
            return send(self, phase, payload, *expect, **how)

        monkeypatch.setattr(Federation, "send", noted)
        conf = toy(toy_conf, method, "evaluation.images_per_class=1", *overrides)
        return [e for e in read_lines(federated(conf) / "ledger.jsonl") if e["round"] == 1], sent

    return run


def near(entry: dict, way: str, expected: float) -> None:
    """Within 3 per cent, and what a header may differ by."""
    assert entry[way] == pytest.approx(expected, rel=0.03, abs=120), (entry["phase"], way, entry[way], expected)


def of(ledger: list[dict], phase: str) -> list[dict]:
    found = [e for e in ledger if e["phase"] == phase and not e["fault"]]
    assert found
    return found


def samples_bytes(sent: Samples) -> float:
    """The formula at the mean bytes of what was sent."""
    blobs = {name: sum(map(len, held)) / N for name in ("images", "texts") if (held := getattr(sent, name))}
    return payload_bytes(Samples, {"N": N, **blobs})


@pytest.mark.parametrize(("method", "kind"), [("fedavg", Weights), ("lorafl", Adapters)])
def test_weights_and_modules(seen: Callable, method: str, kind: type) -> None:
    ledger, sent = seen(method)
    for entry in of(ledger, "train"):
        tensors = sent["train", entry["client"]].tensors
        names = sum(map(len, tensors))  # in a model of millions of weights they are nothing
        expected = payload_bytes(kind, {}, sum(t.numel() for t in tensors.values()), len(tensors)) + names
        near(entry, "down", expected)
        near(entry, "up", expected)


def test_class_means(seen: Callable) -> None:
    ledger, sent = seen("fedproto")
    for entry in of(ledger, "train"):
        near(entry, "down", payload_bytes(Prototypes, {"G": len(sent["train", entry["client"]].classes), "D": D}))
        assert entry["up"] <= 1.03 * payload_bytes(Prototypes, {"G": C, "D": D}) + 120


def test_class_scores(seen: Callable) -> None:
    ledger, sent = seen("fedmd", *PUBLIC)
    for entry in of(ledger, "represent"):
        near(entry, "down", samples_bytes(sent["represent", entry["client"]]))
        near(entry, "up", payload_bytes(Logits, {"N": N, "C": C}))
    for entry in of(ledger, "distill"):
        near(entry, "down", payload_bytes(Logits, {"N": N, "C": C}))


def test_answers_and_targets(seen: Callable) -> None:
    ledger, sent = seen("fedmmkt", f"method.server.samples={N}")
    for entry in of(ledger, "represent"):
        near(entry, "down", samples_bytes(sent["represent", entry["client"]]))
        near(entry, "up", payload_bytes(Answers, {"N": N, "D": D, "A": 0}))
    for entry in of(ledger, "distill"):
        kept = len(sent["distill", entry["client"]].ids)
        near(entry, "down", payload_bytes(Targets, {"N": kept, "R": D}))


def test_features_of_pairs(seen: Callable) -> None:
    ledger, sent = seen("creamfl", *PUBLIC)
    for entry in of(ledger, "distill"):
        near(entry, "down", payload_bytes(Features, {"N": N, "I": D, "T": D}))


def test_the_papers_bytes_at_the_papers_sizes() -> None:
    """Table X of arXiv 2510.12254: 2.35 MB up and 7.13 down, without ids and with labels of four bytes."""
    answers = EXCHANGES["answers"]
    assert answers.up(PAPER) / 2**20 == pytest.approx(2.35, rel=0.02)
    assert answers.down(PAPER) / 2**20 == pytest.approx(7.13, rel=0.02)


def test_limits_by_hand() -> None:
    # 16 GiB / (4 bytes x 11.7 M weights), less the two models that the server has anyhow
    most = scaling.largest_cohort(EXCHANGES["weights"], PAPER)
    assert most["memory"] == pytest.approx(16 * 2**30 / (4 * 11.7e6) - 2)
    # 125 MB a second for 600 s, 93.6 MB a client both ways; 1e11 operations a second, 2 for each weight
    assert most["network"] == pytest.approx(75e9 / (2 * (4 * 11.7e6 + 160)))
    assert most["arithmetic"] == pytest.approx(6e13 / (2 * 11.7e6))


def test_the_page_is_what_the_generator_makes() -> None:
    """`python bench/scaling.py` writes it again."""
    assert Path(scaling.PAGE).read_text(encoding="utf-8") == scaling.markdown()
