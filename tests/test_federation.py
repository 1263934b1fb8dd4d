"""The server's view: checked replies, faults named and left out, bytes counted, cohorts by seed."""

import time
from types import SimpleNamespace

import pytest
import torch
from flwr.app import Error, Message
from flwr.supercore.task_identity import TaskIdentity

from florilegium.federation.federation import Client, Federation, FederationError
from florilegium.protocol import codec
from florilegium.protocol.codec import Header
from florilegium.protocol.payloads import Answers, Nothing, Profile, Report, SiteProfile


@pytest.fixture(autouse=True)
def identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


class ScriptedGrid:
    """Nodes 11, 12, ... whose replies are a function (node, payload, header) -> payload, Error or None (silence)."""

    def __init__(self, nodes, answer):
        self.nodes, self.answer, self.replies, self.count = nodes, answer, {}, 0

    def get_node_ids(self):
        return self.nodes

    def push_messages(self, messages):
        ids = []
        for message in messages:
            self.count += 1
            message.metadata.__dict__["_message_id"] = name = f"m{self.count}"
            header = codec.header(message.content)
            reply = self.answer(message.metadata.dst_node_id, codec.unpack(message.content), header)
            if isinstance(reply, Error):
                self.replies[name] = Message(reply, reply_to=message)
            elif reply is not None:
                payload, stamp = reply if isinstance(reply, tuple) else (reply, header)
                self.replies[name] = Message(codec.pack(payload, stamp), reply_to=message)
            ids.append(name)
        return ids

    def pull_messages(self, ids):
        return [self.replies.pop(i) for i in ids if i in self.replies]


def profile(node):
    return Profile(node - 11, "image" if node < 13 else "text", "vit", 10, [0, 1])


def answers(n=3):
    labels = torch.zeros(n, dtype=torch.long)
    return Answers(torch.arange(n), labels, torch.ones(n), torch.zeros(n, 4), torch.zeros(n, 0))


def federation(answer, **settings):
    def reply(node, payload, header):
        return profile(node) if header.step == 1 and header.round == 0 else answer(node, payload, header)

    met = Federation(ScriptedGrid([14, 12, 11, 13], reply), **{"timeout": 0.2} | settings)
    met.meet()
    met.begin(1)
    return met


BOUNDS = {"N": 3, "C": 2, "D": 4, "A": 0}


def test_clients_are_known_by_their_own_id():
    met = federation(lambda *_: Nothing())
    assert [(c.id, c.node, c.modality) for c in met.clients] == [
        (0, 11, "image"),
        (1, 12, "image"),
        (2, 13, "text"),
        (3, 14, "text"),
    ]


@pytest.mark.parametrize(
    "bad, fault",
    [
        (Error(2, "ValueError: broken"), "raised: ValueError: broken"),
        (None, "gave no answer within"),
        (answers(2), "Answers.ids has 2 along N, expected 3"),
        (Nothing(), "expected Answers, got Nothing"),
        ((answers(), Header("method", 0, 9)), "answers Header(arm='method', round=0, step=9)"),
        (
            Answers(
                torch.tensor([0, 2, 1]),
                *[getattr(answers(), f) for f in ("labels", "confidence", "representations", "augmented")],
            ),
            "are not the ids",
        ),
    ],
)
def test_a_bad_client_is_named_counted_and_left_out(bad, fault):
    met = federation(lambda node, *_: bad if node == 12 else answers())
    replies = met.ask("represent", Nothing(), Answers, bounds=BOUNDS, ids=torch.arange(3))
    assert [x.client.id for x in replies] == [0, 2, 3]
    (entry,) = [e for e in met.ledger if e["fault"]]
    assert entry["client"] == 1 and fault in entry["fault"]
    assert met.traffic(1)["clients/faults"] == 1


TWO = {"data": "toy", "clients.mix": "[{modality: image, model: vit}, {modality: image, model: resnet}]"}


@pytest.mark.parametrize(
    "wrong, fault",
    [
        ({"client": 77, "classes": [999]}, "Profile.client is 77, but clients.mix has 2 clients"),
        ({"client": 2}, "Profile.client is 2, but clients.mix has 2 clients"),
        ({"classes": [3, 4]}, "Profile.classes has 4, but there are 4 classes"),
        ({"modality": "text"}, "Profile says that client 1 is text resnet, clients.mix has image resnet"),
        ({"architecture": "vit"}, "Profile says that client 1 is image vit, clients.mix has image resnet"),
    ],
)
def test_a_profile_that_does_not_fit_the_settings_is_a_fault(wrong, fault, toy_conf):
    def answer(node, *_):
        right = {"client": 1, "modality": "image", "architecture": "resnet", "examples": 10, "classes": [3]}
        return SiteProfile(**right | wrong) if node == 12 else SiteProfile(0, "image", "vit", 10, [0, 3])

    conf = toy_conf(*(f"{key}={value}" for key, value in TWO.items()))
    resources = SimpleNamespace(conf=conf, classes=["a", "b", "c", "d"])
    met = Federation(ScriptedGrid([11, 12], answer), timeout=0.2, quorum=1, expected=2, resources=resources)
    met.meet()  # and once more when the round begins
    assert [client.id for client in met.clients] == [0]
    assert [e["fault"] for e in met.ledger if e["fault"]] == [f"sent a bad reply: {fault}"] * 2
    assert {e["node"] for e in met.ledger if e["fault"]} == {"12"}


def test_without_a_quorum_the_run_stops_and_says_who_failed():
    met = federation(lambda node, *_: Error(2, "no memory") if node != 11 else Nothing(), quorum=2)
    with pytest.raises(FederationError, match="1 of 2 needed replies to 'train': client 1: raised: no memory"):
        met.ask("train", Nothing())


def test_a_dead_worker_ends_the_run_at_once():
    met = federation(lambda node, *_: Error(8, "actor died") if node == 13 else Nothing(), fatal=[8])
    with pytest.raises(FederationError, match="the worker of client 2"):
        met.ask("train", Nothing())


def test_clients_that_never_connect_are_waited_for_only_so_long():
    with pytest.raises(FederationError, match="1 of 3 clients connected within"):
        Federation(ScriptedGrid([11], lambda *_: None), timeout=0.1, expected=3).meet()


def test_two_nodes_with_one_name_are_refused():
    grid = ScriptedGrid([11, 12], lambda *_: Profile(0, "image", "vit", 1, [0]))
    with pytest.raises(FederationError, match="two nodes call themselves client 0"):
        Federation(grid, timeout=0.2).meet()


def test_cohorts_depend_on_seed_and_round_only():
    a, b = (federation(lambda *_: Nothing(), fraction=0.5, seed=7) for _ in range(2))
    b.ask("train", Nothing())
    seen = set()
    for r in range(1, 9):
        a.begin(r)
        b.begin(r)
        assert a.cohort == b.cohort and len(a.cohort) == 2
        seen.add(tuple(c.id for c in a.cohort))
    assert len(seen) > 1


def test_the_ledger_measures_what_crossed():
    met = federation(lambda *_: answers())
    met.ask("represent", Nothing(), Answers, bounds=BOUNDS)
    up = codec.size(codec.pack(answers(), Header("method", 1, 1)))
    down = codec.size(codec.pack(Nothing(), Header("method", 1, 1)))
    assert met.traffic(1) == {"bytes/up_per_client": up, "bytes/down_per_client": down, "clients/faults": 0}
    met.ask("evaluate", Nothing(), Answers)  # judging is not part of the method's cost
    assert met.traffic(1)["bytes/up_per_client"] == up


def test_payloads_may_differ_by_client_and_client_lists_are_obeyed():
    met = federation(lambda node, payload, header: Report({"seen": float(payload.examples)}, 1))
    replies = met.ask("train", lambda c: Report({}, 100 + c.id), Report, clients=met.clients[1:3])
    assert [(x.client.id, x.body.metrics["seen"]) for x in replies] == [(1, 101.0), (2, 102.0)]
    assert str(met.clients[0]) == "client 0 (image, vit)" and str(Client(5)) == "node 5"


def test_an_exchange_may_need_no_reply_at_all():
    met = federation(lambda *_: Error(2, "no memory"), quorum=2)
    assert met.ask("train", Nothing(), needed=0) == []
    assert sum(e["fault"] is not None for e in met.ledger) == 4


@pytest.mark.parametrize("patient, faults", [(False, 1), (True, 0)])
def test_a_patient_exchange_counts_the_time_from_the_last_reply(patient, faults, monkeypatch):
    """Four clients of one core answer one after the other, each within the time to answer."""
    met = federation(lambda *_: Nothing())
    met.timeout, pull = 0.5, ScriptedGrid.pull_messages
    now = [time.monotonic()]
    monkeypatch.setattr("florilegium.federation.federation.time.monotonic", lambda: now[0])
    monkeypatch.setattr("florilegium.federation.federation.time.sleep", lambda _: None)

    def in_turn(grid, ids):
        now[0] += 0.2
        return pull(grid, ids[:1])

    monkeypatch.setattr(ScriptedGrid, "pull_messages", in_turn)
    assert len(met.ask("train", Nothing(), patient=patient)) == 4 - faults
