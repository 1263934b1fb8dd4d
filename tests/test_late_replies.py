"""Slow, leaving and coming clients: rounds keep their deadline, no node has two messages, late weights count less."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from flwr.app import Error, Message
from flwr.supercore.task_identity import TaskIdentity

from florilegium.config import composition
from florilegium.config.run import Timeouts
from florilegium.federation.federation import Federation, FederationError
from florilegium.protocol import codec
from florilegium.protocol.payloads import Nothing, Profile, Weights
from florilegium.protocol.validation import WireError
from strategies.blocks.weights import shares, trained
from tests.local_grid import FIRST_NODE


@pytest.fixture(autouse=True)
def identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


class Clock:
    """Seconds that pass only when the server waits; `monotonic` and `sleep` of the federation's time."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class SlowGrid:
    """Node n is client n - 10; a question is answered `pace(node)` seconds later with weights [client + round / 10]."""

    def __init__(self, clock, nodes, pace):
        self.clock, self.nodes, self.pace = clock, list(nodes), pace
        self.asked, self.replies, self.open = [], {}, {}

    def get_node_ids(self):
        return self.nodes

    def push_messages(self, messages):
        names = []
        for message in messages:
            node, header = message.metadata.dst_node_id, codec.header(message.content)
            phase = message.metadata.message_type
            assert node not in self.open.values(), f"node {node} has two messages"
            name = f"m{len(self.asked)}"
            message.metadata.__dict__["_message_id"] = name
            self.asked.append((header.round, phase, node))
            self.open[name] = node
            body = (
                Profile(node % 10, "image", "vit", 10, [0])
                if phase == "query.profile"
                else Weights({"w": torch.tensor([node % 10 + header.round / 10])}, 10)
            )
            pace = 0.0 if phase == "query.profile" else self.pace(node)
            if pace is not None:
                self.replies[name] = self.clock.now + pace, Message(codec.pack(body, header), reply_to=message)
            names.append(name)
        return names

    def pull_messages(self, names):
        ready = [name for name in names if name in self.replies and self.replies[name][0] <= self.clock.now]
        for name in ready:
            del self.open[name]
        return [self.replies.pop(name)[1] for name in ready]


@pytest.fixture
def slow(monkeypatch):
    """`slow(pace, **settings)`: a federation of clients 1, 2, 3 on a clock of its own."""

    def made(pace, **given):
        clock = Clock()
        for module in ("federation", "exchange"):
            monkeypatch.setattr(f"florilegium.federation.{module}.time", clock)
        federation = Federation(SlowGrid(clock, (11, 12, 13), pace), **{"timeout": 10.0, "quorum": 2} | given)
        federation.meet()
        federation.ledger.clear()
        return federation, clock

    return made


def ten_times_slower(node):
    return 25.0 if node == 13 else 2.5


def train(federation, r):
    federation.begin(r)
    return trained(federation, {"w": torch.zeros(1)})


def told(replies):
    return [(x.client.id, round(x.body.tensors["w"].item(), 4), x.weight) for x in replies]


def test_a_client_ten_times_slower_never_holds_a_round_and_its_late_weights_are_dropped(slow):
    federation, clock = slow(ten_times_slower)
    lengths, cohorts = [], []
    for r in range(1, 5):
        begun = clock.now
        cohorts.append(told(train(federation, r)))
        lengths.append(clock.now - begun)
    # client 3, asked in round 1 at 0 s, is missed at 10 s and not asked in rounds 2 to 4, which last 2.5 s each
    assert lengths == pytest.approx([10, 2.5, 2.5, 2.5], abs=0.2)
    assert cohorts == [[(1, 1 + r / 10, 1.0), (2, 2 + r / 10, 1.0)] for r in range(1, 5)]
    clock.now = 26.0
    assert [x.client.id for x in train(federation, 5)] == [1, 2]  # free again, asked, late again
    assert [a for a in federation.grid.asked if a[2] == 13 and a[1] == "train"] == [(1, "train", 13), (5, "train", 13)]
    (late,) = [e for e in federation.ledger if "late" in e]
    assert late["late"] == "asked in round 1; dropped" and late["round"] == 5 and late["up"] > 0 and not late["fault"]
    assert late["seconds"] == 26.0 and federation.traffic(5)["clients/late"] == 1.0


def test_with_decay_late_weights_stand_in_and_count_less_by_the_round(slow):
    federation, clock = slow(ten_times_slower, late="decay", decay=0.5)
    for r in (1, 2):
        train(federation, r)
    clock.now = 25.5
    replies = train(federation, 3)  # asked again, misses again; what it made of round 1 counts 0.5 ** 2
    assert told(replies) == [(1, 1.3, 1.0), (2, 2.3, 1.0), (3, 3.1, 0.25)]
    # p_k of 10, 10 and 0.25 * 10 examples
    assert shares(replies) == pytest.approx([10 / 22.5, 10 / 22.5, 2.5 / 22.5])
    assert shares(replies, "uniform") == pytest.approx([1 / 2.25, 1 / 2.25, 0.25 / 2.25])
    (late,) = [e for e in federation.ledger if "late" in e]
    assert late["late"] == "asked in round 1; counts 0.25"


def test_a_timely_reply_wins_over_a_late_one_and_a_late_one_is_checked_as_any_other(slow):
    pace = {11: 1.0, 12: 1.0, 13: 15.0}
    federation, clock = slow(lambda node: pace[node], late="decay")
    train(federation, 1)
    clock.now, pace[13] = 16.0, 1.0
    assert told(train(federation, 2))[2] == (3, 3.2, 1.0)
    assert [e["late"] for e in federation.ledger if "late" in e] == ["asked in round 1; dropped for a newer one"]
    pace[13] = 15.0
    train(federation, 3)
    clock.now, pace[13] = clock.now + 6, 40.0
    federation.begin(4)
    assert federation.ask("train", Nothing(), Weights, late=True, needed=0, check=refuse) == []
    assert "asked in round 3; dropped: not now" in [e.get("late") for e in federation.ledger]


def refuse(client, body):
    raise WireError("not now")


def test_methods_that_do_not_take_late_weights_never_see_them(slow):
    federation, clock = slow(ten_times_slower, late="decay")
    federation.begin(1)
    trained(federation, {"w": torch.zeros(1)}, late=False)
    clock.now = 26.0
    federation.begin(2)
    assert len(trained(federation, {"w": torch.zeros(1)}, late=False)) == 2
    assert [e["late"] for e in federation.ledger if "late" in e] == ["asked in round 1; dropped"]


def test_a_client_that_never_answers_is_given_up_and_asked_again(slow):
    silent = {13: None}
    federation, clock = slow(lambda node: silent.get(node, 1.0), give_up=30.0)
    train(federation, 1)
    assert [x.client.id for x in train(federation, 2)] == [1, 2]
    clock.now, silent[13] = 31.0, 1.0
    federation.grid.open.clear()  # the node lost its message when it died
    assert [x.client.id for x in train(federation, 3)] == [1, 2, 3]


def test_a_quorum_is_waited_for_when_too_few_are_free(slow):
    federation, clock = slow(lambda node: 14.0 if node > 11 else 1.0, quorum=2)
    with pytest.raises(FederationError, match="1 of 2 needed replies"):
        train(federation, 1)
    begun = clock.now
    federation.begin(2)
    exchange = federation.send("train", Nothing(), Weights)
    assert clock.now - begun == pytest.approx(4.0, abs=0.1) and len(exchange.clients) == 3  # both came at 14 s


def test_the_cohort_follows_the_nodes(slow):
    federation, _ = slow(lambda node: 1.0)
    grid = federation.grid
    grid.nodes = [11, 12]
    assert [x.client.id for x in train(federation, 1)] == [1, 2]
    grid.nodes = [11, 12, 14, 23]  # client 4 is new, client 3 came back as node 23
    assert [x.client.id for x in train(federation, 2)] == [1, 2, 3, 4]
    assert [node for r, phase, node in grid.asked if r == 2 and phase == "query.profile"] == [14, 23]
    grid.nodes = [11, 12, 14, 21, 23]  # a second client 1 is turned away
    assert [(x.client.id, x.client.node) for x in train(federation, 3)] == [(1, 11), (2, 12), (3, 23), (4, 14)]
    grid.nodes = [12]
    with pytest.raises(FederationError, match="1 clients are connected, 2 are needed"):
        federation.begin(4)


def test_a_node_that_returns_under_a_new_number_takes_the_place_of_the_one_that_is_missed(slow):
    pace = {13: None}
    federation, _ = slow(lambda node: pace.get(node, 1.0))
    train(federation, 1)
    federation.grid.nodes = [11, 12, 13, 23]
    assert [(x.client.id, x.client.node) for x in train(federation, 2)] == [(1, 11), (2, 12), (3, 23)]


def test_a_dead_node_is_told_by_an_error_and_free_at_once(slow):
    federation, clock = slow(lambda node: 1.0)
    grid = federation.grid
    push = grid.push_messages

    def dying(messages):
        names = push(messages)
        for name in names:
            if grid.open[name] == 13:
                question = next(m for m in messages if m.metadata.message_id == name)
                grid.replies[name] = clock.now + 12, Message(Error(3, "node unavailable"), reply_to=question)
        return names

    grid.push_messages = dying
    assert [x.client.id for x in train(federation, 1)] == [1, 2]
    clock.now, grid.push_messages = 13.0, push
    assert [x.client.id for x in train(federation, 2)] == [1, 2, 3]
    assert [e["late"] for e in federation.ledger if "late" in e] == ["asked in round 1; raised: node unavailable"]


@pytest.mark.parametrize(
    "bad, line",
    [
        ({"late": "keep"}, "late must be one of drop, decay"),
        ({"decay": 2.0}, "decay must lie between 0 and 1"),
        ({"give_up": 10.0}, "give_up must lie between 600"),
    ],
)
def test_settings_are_checked(bad, line):
    with pytest.raises(composition.SettingsError, match=f"timeouts: {line}"):
        composition.typed(Timeouts, bad, "timeouts")


ALIKE = "clients.mix=[" + ",".join(["{modality: image, model: resnet}"] * 3) + "]"


@pytest.mark.parametrize("late", ["drop", "decay"])
def test_real_apps_with_a_slow_client_that_leaves_and_another_that_comes(late, toy_conf):
    """FedAvg through the real apps: client 2 takes longer than a round may last, client 1 leaves after round 1 and is
    back, as another node, in round 3."""
    from client_app.app import app as client_app
    from server_app import driver
    from tests.local_grid import LocalGrid

    conf = toy_conf(
        "method=fedavg",
        ALIKE,
        "rounds=4",
        "evaluation.images_per_class=1",
        f"timeouts.late={late}",
        "timeouts.quorum=1",
    )
    conf.timeouts.exchange = 1.5

    def delay(message):
        slow = message.metadata.dst_node_id == FIRST_NODE + 2 and message.metadata.message_type == "train"
        return math.inf if slow and codec.header(message.content).round == 1 else 0.0

    run_config = {"settings": json.dumps(composition.plain(conf)), "overrides": ""}
    grid = LocalGrid(client_app, 3, run_config, delay=delay)
    away, begin = [], Federation.begin

    def moving(federation, r):
        if r == 2:
            away.append(grid.leave(1))
        if r == 3:
            grid.join(away.pop(), 300)
            grid.release()
        begin(federation, r)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Federation, "begin", moving)
        driver.drive(conf, grid)
    run = SimpleNamespace(
        **{name: [json.loads(x) for x in open(f"{conf.out}/{name}.jsonl")] for name in ("rounds", "ledger")}
    )
    assert [r["round"] for r in run.rounds] == [0, 1, 2, 3, 4] and grid.most_under_way == 1
    asked = {
        r: sorted(e["client"] for e in run.ledger if e["round"] == r and e["phase"] == "train" and "late" not in e)
        for r in range(1, 5)
    }
    assert asked == {1: [0, 1, 2], 2: [0], 3: [0, 1, 2], 4: [0, 1, 2]}
    (entry,) = [e for e in run.ledger if "late" in e]
    assert entry["client"] == 2 and entry["round"] == 3
    assert entry["late"] == "asked in round 1; dropped" + (" for a newer one" if late == "decay" else "")
