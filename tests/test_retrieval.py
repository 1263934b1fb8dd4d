"""Recall by hand, against torchmetrics, and as the server's and the clients' figures."""

import pytest
import torch
from torch.nn.functional import normalize
from torchmetrics.functional.retrieval import retrieval_hit_rate

from florilegium import seeds
from florilegium.data.datasets import grouped
from florilegium.data.public import PublicPairs, held_out_pairs
from florilegium.learning.retrieval import KS, different, headline, protocol, recall, retrieval
from florilegium.models.build import build_pair
from florilegium.resources import Resources
from server_app.evaluation import Evaluation


def pairs_of(texts, concepts):
    n = len(texts)
    return PublicPairs(
        torch.arange(n),
        torch.zeros(n, 3, 4, 4, dtype=torch.uint8),
        tuple(texts),
        torch.zeros(n, dtype=torch.int64),
        grouped(concepts, texts),
        "",
    )


def test_recall_by_hand():
    """Query 0's match is best, query 1's is third, query 2 has two matches of which one is second."""
    scores = torch.tensor([[0.9, 0.1, 0.2, 0.3], [0.5, 0.3, 0.6, 0.1], [0.8, 0.7, 0.1, 0.2]])
    match = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]]).bool()
    assert recall(scores, match, (1, 2, 3)) == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 1.0})


def test_equal_vectors_find_nothing():
    """A collapsed encoder must not be given what the order of rows would give it."""
    assert recall(torch.ones(4, 20), torch.eye(4, 20).bool()) == {1: 0.0, 5: 0.0, 10: 0.0}


def test_recall_is_torchmetrics_hit_rate():
    random = seeds.generator("retrieval")
    scores = torch.rand(30, 25, generator=random)
    match = torch.rand(30, 25, generator=random) < 0.08
    match[torch.arange(30), torch.arange(30) % 25] = True
    for k in KS:
        rates = [retrieval_hit_rate(s, m, top_k=k) for s, m in zip(scores, match, strict=True)]
        assert recall(scores, match)[k] == pytest.approx(torch.stack(rates).mean().item())


def test_a_hit_is_any_row_of_the_concept():
    """Images 0 and 1 show one thing (one text); image 2 another. Image 1 points at text 0 and is right."""
    pairs = pairs_of(["a cat", "a cat", "a dog"], ["cat", "cat", "dog"])
    image = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    figures = retrieval(image, text, pairs)
    # two different texts: cat [1, 0], dog [0, 1]; images' best are cat, cat, dog; texts' best images 0 and 2
    assert figures["retrieval/i2t/r1"] == 1 and figures["retrieval/t2i/r1"] == 1
    assert figures["rsum_2x_r1"] == 2 and figures["rsum_6"] == 6 and headline(figures) == 1
    assert protocol(pairs) == {"images": 3, "texts": 2}


def test_the_sums_are_named_by_what_they_sum():
    """One of two images is right, both texts are: rsum_2x_r1 = 0.5 + 0.5; with two rows every R@5 is 1."""
    pairs = pairs_of(["a cat", "a dog"], ["cat", "dog"])
    image = normalize(torch.tensor([[1.0, 0.1], [1.0, 0.2]]), dim=-1)
    text = torch.eye(2)
    figures = retrieval(image, text, pairs)
    assert figures["retrieval/i2t/r1"] == 0.5 and figures["retrieval/t2i/r1"] == 1.0
    assert figures["rsum_2x_r1"] == 1.5 and figures["rsum_6"] == pytest.approx(1.5 + 4) and headline(figures) == 0.75


def test_rows_are_of_one_group_by_concept_or_by_text():
    groups = grouped(["a", "a", "b", "c", "d"], ["one", "uno", "uno", "three", "four"])
    assert groups[0] == groups[1] == groups[2] and len(set(groups.tolist())) == 3


def test_each_different_text_is_one_candidate():
    assert different(("a", "b", "a", "c", "b")).tolist() == [0, 1, 3]


def test_pairs_come_in_any_order(toy_conf):
    conf = toy_conf()
    pairs = held_out_pairs(conf, "test", "private")
    random = seeds.generator("order")
    image, text = (normalize(torch.randn(len(pairs), 8, generator=random), dim=-1) for _ in range(2))
    text = text[[pairs.texts.index(t) for t in pairs.texts]]  # equal texts have equal vectors
    shuffled = torch.randperm(len(pairs), generator=random)
    assert retrieval(image, text, pairs) == pytest.approx(
        retrieval(image[shuffled], text[shuffled], pairs.select(shuffled))
    )


def test_the_server_s_task_is_retrieval_in_the_public_domain(toy_conf):
    conf = toy_conf()
    evaluation = Evaluation(conf, Resources(conf))
    with seeds.scoped("server"):
        model = build_pair(conf.clients, "resnet+bert")

    class Strategy:
        server_model = model

    figures = evaluation.server(Strategy())
    assert {
        "server/rsum",
        "server/rsum_6",
        "server/validation",
        "server/retrieval/i2t/r1",
        "server/retrieval/t2i/r10",
    } <= figures.keys()
    both = figures["server/retrieval/i2t/r1"] + figures["server/retrieval/t2i/r1"]
    assert figures["server/rsum"] == pytest.approx(both)
    assert evaluation.server(Strategy()) == figures and evaluation.server(object()) == {}


def test_the_protocol_states_the_galleries(toy_conf):
    conf = toy_conf("clients.mix=[{modality: pair, model: resnet+bert}]", "timeouts.quorum=1")
    told = Evaluation(conf, Resources(conf)).protocol()["retrieval"]
    assert told["rsum"] == "rsum_2x_r1" and told["clients"]["images"] == 64 and told["server"]["images"] == 32
    assert told["clients"]["texts"] <= 24
