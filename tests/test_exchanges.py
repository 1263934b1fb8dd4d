"""One message a round in the place of three: the same targets one exchange later, the same numbers at the end."""

import json
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch

from florilegium.federation.federation import Client, FederationError, Reply
from florilegium.federation.joining import Joining, joined
from florilegium.protocol import codec, pixels
from florilegium.protocol.codec import Header
from florilegium.protocol.payloads import Joined, Nothing, PublicSet, Report, Samples, Targets
from florilegium.protocol.validation import WireError
from florilegium.runs import files

A, B, C = (Client(10 + k, k, m) for k, m in enumerate(("image", "image", "text")))
SMALL = [
    "method.server.samples=12",
    "tuning.batch=8",
    "method.client.pretrain_epochs=1",
    "evaluation.images_per_class=2",
]
IMAGES = tuple(pixels.encode(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "png"))


@dataclass
class Sent:
    clients: dict


@dataclass
class Told:
    """A federation that notes (round, phase, client, ids taught) and whose `cohort` answers, but for the `silent`."""

    clients: list = field(default_factory=lambda: [A, B, C])
    cohort: list = field(default_factory=lambda: [A, B, C])
    silent: set = field(default_factory=set)
    round: int = 0
    notes: list = field(default_factory=list)

    def ask(self, phase, payload, *expect, clients=None, **how):
        return self.collect(self.send(phase, payload, *expect, clients=clients, **how))

    def send(self, phase, payload, *expect, clients=None, **how):
        asked = self.cohort if clients is None else clients
        for client in asked:
            body = payload(client) if callable(payload) else payload
            known = body.known if isinstance(body, Joined) else getattr(body, "ids", torch.zeros(0))
            self.notes.append((self.round, phase, client.id, known.tolist() if phase != "represent" else []))
        return Sent({str(client.id): client for client in asked})

    def state(self):
        return {}, {"guard": "as it is"}

    def restore(self, tensors, meta):
        assert meta["guard"] == "as it is"

    def collect(self, exchange):
        return [Reply(client, None) for client in exchange.clients.values() if client.id not in self.silent]


def samples(r):
    ids = torch.arange(2) + 2 * r
    return {"image": Samples(ids, images=IMAGES), "text": Samples(ids, texts=("x", "y"))}


def targets(r):
    """Sample 2r is kept in round r, sample 2r + 1 is not."""
    return Targets(torch.tensor([2 * r]), torch.zeros(1, dtype=torch.long), torch.full((1, 4), float(r)))


def rounds(kind, told, cohorts=None, silent=None, last=3):
    """`last` rounds as FedMMKT has them; the federation that was asked, and the notes."""
    federation = Joining(told, last) if kind == "joined" else told
    for r in range(1, last + 1):
        told.round = r
        told.cohort = (cohorts or {}).get(r, told.clients)
        told.silent = (silent or {}).get(r, set())
        federation.ask("train", Nothing(), Nothing, Report)
        sent = samples(r)
        replies = federation.ask("represent", lambda client, sent=sent: sent[client.modality])
        teaching = federation.send("distill", targets(r), Report, clients=[reply.client for reply in replies])
        federation.collect(teaching)
    return federation, told.notes


def test_every_client_meets_the_same_targets_one_exchange_later():
    literal = rounds("separate", Told())[1]
    together = rounds("joined", Told())[1]
    assert [n for n in literal if n[2] == 0] == [
        (1, "train", 0, []),
        (1, "represent", 0, []),
        (1, "distill", 0, [2]),
        (2, "train", 0, []),
        (2, "represent", 0, []),
        (2, "distill", 0, [4]),
        (3, "train", 0, []),
        (3, "represent", 0, []),
        (3, "distill", 0, [6]),
    ]
    assert [n for n in together if n[2] == 0] == [
        (1, "joined", 0, []),
        (2, "joined", 0, [2]),
        (3, "joined", 0, [4]),
        (3, "distill", 0, [6]),
    ]
    for client in (0, 1, 2):
        taught = [[n[3] for n in notes if n[2] == client and n[3]] for notes in (literal, together)]
        assert taught[0] == taught[1] == [[2], [4], [6]]


def test_a_client_that_sits_out_is_owed_its_targets_until_it_is_asked_again_or_the_end():
    exchanges, notes = rounds("joined", Told(), cohorts={1: [A, B], 2: [A], 3: [A, C]})
    assert [n for n in notes if n[2] == 1] == [(1, "joined", 1, []), (3, "distill", 1, [2])]  # B, asked in 1 only
    assert [n for n in notes if n[2] == 2] == [(3, "joined", 2, []), (3, "distill", 2, [6])]  # C is new in round 3
    assert [n[3] for n in notes if n[2] == 0] == [[], [2], [4], [6]]
    assert exchanges.owed == {} and exchanges.targets == {}


def test_who_did_not_answer_is_owed_nothing_and_nobody_is_taught_twice():
    _, notes = rounds("joined", Told(), silent={2: {1}})
    assert [n for n in notes if n[2] == 1] == [
        (1, "joined", 1, []),
        (2, "joined", 1, [2]),
        (3, "joined", 1, []),
        (3, "distill", 1, [6]),
    ]


def test_what_is_owed_is_part_of_the_state():
    federation, _ = rounds("joined", Told(), cohorts={1: [A, B], 2: [A]}, last=3)
    assert federation.state() == ({}, {"guard": "as it is", "owed": {}})
    federation = Joining(Told(), 3)
    for r, clients in ((1, [A, B]), (2, [A])):
        federation.inner.round = r
        assert federation.ask("distill", targets(r), Report, clients=clients) == []
    tensors, meta = federation.state()
    assert meta["owed"] == {"0": 2, "1": 1} == json.loads(json.dumps(meta))["owed"] and len(tensors) == 6
    twin = Joining(Told(), 3)
    twin.restore(tensors, meta)
    assert twin.owed == {0: 2, 1: 1} and twin.targets[1].ids.tolist() == [2] and twin.targets[2].ids.tolist() == [4]


def test_a_training_goes_out_alone_where_no_samples_follow():
    told = Told(round=1)
    federation = Joining(told, 3)
    assert federation.ask("train", Nothing(), Nothing, Report) == [] and told.notes == []
    federation.ask("represent", lambda client: samples(1)["image"], clients=[A, B])  # C has nothing to answer
    assert told.notes == [(1, "train", 2, []), (1, "joined", 0, []), (1, "joined", 1, [])]
    federation.ask("train", Nothing(), Nothing, Report)
    federation.ask("evaluate", Nothing(), Report, clients=[A])
    assert [note[1:3] for note in told.notes[3:]] == [("train", 0), ("train", 1), ("train", 2), ("evaluate", 0)]
    told.round, told.notes = 0, []
    federation.ask("train", Nothing(), Nothing, Report)  # the start of every client is a message of its own
    assert [note[1] for note in told.notes] == ["train"] * 3


def test_a_method_without_samples_cannot_be_joined():
    federation = Joining(Told(round=1), 3)
    federation.ask("train", Nothing(), Nothing, Report)
    with pytest.raises(FederationError, match="joined needs samples to send, the method sends PublicSet"):
        federation.ask("represent", PublicSet("hash", torch.arange(2)))


def test_the_payload_carries_both_and_is_checked():
    body = joined(samples(2)["image"], 1, targets(1))
    header = Header("method", 2, 1)
    back = codec.unpack(codec.pack(body, header), Joined, bounds={"N": 2, "C": 3})
    assert back.taught == 1 and back.samples.ids.tolist() == [4, 5] and back.samples.images == IMAGES
    assert back.targets.ids.tolist() == [2] and back.targets.representations.tolist() == [[1.0] * 4]
    none = codec.unpack(codec.pack(joined(samples(1)["text"], 0, None), header), Joined)
    assert none.taught == 0 and len(none.targets.ids) == 0 and none.samples.texts == ("x", "y")
    broken = Joined(1, body.ids, body.known, torch.zeros(2, dtype=torch.long), body.representations, body.images)
    with pytest.raises(WireError, match="Joined.labels has 2 along L, expected 1"):
        codec.unpack(codec.pack(broken, header), Joined)


def lines(run, name="rounds"):
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


def test_joined_rounds_end_with_the_numbers_of_separate_ones_and_resume(toy_conf, federated, tmp_path):
    """Through the real apps: the same votes and T2I model in every round, the same clients at the
    end; a run that dies in the middle of its second round's only exchange goes on exactly."""
    runs = {}
    for kind in ("separate", "joined", "killed"):
        conf = toy_conf(
            "method=fedmmkt",
            "rounds=2",
            *SMALL,
            f"out={tmp_path / kind}",
            f"method.server.exchanges={'separate' if kind == 'separate' else 'joined'}",
        )
        if kind == "killed":
            seen = []

            def dies(question, reply, seen=seen):
                seen.append(question.metadata.message_type)
                if seen.count("train.joined") == 7:
                    raise KeyboardInterrupt
                return reply

            with pytest.raises(KeyboardInterrupt):
                federated(conf, dies)
            conf.resume = True
        runs[kind] = federated(conf)
    separate, together, killed = (lines(run) for run in runs.values())
    at_server = [
        {k: v for k, v in r["metrics"].items() if k.startswith(("labels/", "t2i/", "fusion/", "prompts/"))}
        for r in separate
    ]
    assert [{k: r["metrics"].get(k) for k in s} for r, s in zip(together, at_server, strict=True)] == at_server
    last = [
        {k: v for k, v in run[-1]["metrics"].items() if not k.startswith(("bytes/", "distill/"))}
        for run in (separate, together)
    ]
    assert last[0] == last[1] and last[0]["client/accuracy"] > 0
    assert [r["metrics"] for r in killed] == [r["metrics"] for r in together]
    models = [
        [files.load(sorted(run.glob(f"state/**/client-{k}/model-*.safetensors"))[-1])[0] for k in range(4)]
        for run in runs.values()
    ]
    for ours, theirs in [*zip(models[0], models[1], strict=True), *zip(models[0], models[2], strict=True)]:
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_round_is_one_message_to_each_client(toy_conf, federated):
    run = federated(toy_conf("method=fedmmkt", "rounds=2", *SMALL, "method.server.exchanges=joined"))
    told = Counter((e["round"], e["phase"]) for e in lines(run, "ledger") if e["phase"] not in ("profile", "evaluate"))
    assert told == {(0, "train"): 4, (1, "joined"): 4, (2, "joined"): 4, (2, "distill"): 4}


@pytest.mark.parametrize("variant", ["logit", "unimodal"])
def test_every_variant_can_be_joined(variant, toy_conf, federated):
    how = ("method.server.exchanges=joined", f"method.variant={variant}", "method.server.prompt_veto=false")
    run = federated(toy_conf("method=fedmmkt", "rounds=1", *SMALL, *how))
    assert not [e for e in lines(run, "ledger") if e["fault"]]
    assert lines(run)[-1]["metrics"]["labels/kept"] > 0


def test_a_wrong_value_is_named():
    from strategies.fedmmkt import FedMMKTSettings

    with pytest.raises(ValueError, match="exchanges must be one of separate, joined, got 'both'"):
        FedMMKTSettings(exchanges="both")


@pytest.mark.long
def test_overlapped_runs_are_alike_each_time_joined_or_not(toy_conf, federated, tmp_path):
    """Through the real apps. Made while clients train, the first round's samples are fresh and the second's are not."""
    found = {}
    for name, overlap, exchanges in (
        ("now", "none", "separate"),
        ("fresh", "distill", "separate"),
        ("ahead", "train", "separate"),
        ("again", "train", "separate"),
        ("joined", "train", "joined"),
    ):
        how = (f"method.server.overlap={overlap}", f"method.server.exchanges={exchanges}", f"out={tmp_path / name}")
        run = federated(toy_conf("method=fedmmkt", "rounds=2", *SMALL, "method.server.prompt_veto=false", *how))
        found[name] = [
            {k: v for k, v in r["metrics"].items() if k.startswith(("labels/", "t2i/", "fusion/", "prompts/"))}
            for r in lines(run)
        ]
    assert found["fresh"] == found["now"] and found["ahead"] == found["again"] == found["joined"]
    assert found["ahead"][:2] == found["now"][:2] and found["ahead"][2] != found["now"][2]
