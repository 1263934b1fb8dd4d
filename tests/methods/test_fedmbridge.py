"""FedMBridge: the graph of layers, what the hypernetwork makes, its rule by hand, a round, and its state."""

import pytest
import torch

from client_app.methods.modules.fedmbridge import FedMBridgeClient, FedMBridgeClientSettings
from florilegium.federation.federation import Client as Known
from florilegium.federation.federation import Reply
from florilegium.learning.fit import LearningRate
from florilegium.protocol.payloads import Adapters
from strategies.modules.fedmbridge import FedMBridge, FedMBridgeSettings
from strategies.modules.hypernetwork import Graph, decoder_of
from tests.fakes import FakeResources
from tests.toy_federation import CLASSES, WIDTH, ToyClient, ToyFederation, rounds, same

OWN = {"pretrain_epochs": 1, "local_epochs": 1, "batch": 8, "learning_rate": LearningRate(0.01), "reduction": 2}
BRIDGE = {"down.weight": (2, 4), "down.bias": (2,), "up.weight": (4, 2), "up.bias": (4,)}
IMAGE = {f"image.{n}": s for n, s in BRIDGE.items()} | {"head.weight": (3, 4), "head.bias": (3,)}
TEXT = {f"text.{n}": s for n, s in BRIDGE.items()} | {"head.weight": (3, 4), "head.bias": (3,)}
PAIR = {f"{side}.{n}": s for side in ("image", "text") for n, s in BRIDGE.items()}


def strategy(**given):
    made = FedMBridge(FedMBridgeSettings(**given), FakeResources())
    made.build({"image vit": IMAGE, "text bert": TEXT, "pair clip+clip": PAIR})
    return made


def known(k, modality, architecture):
    return Known(k, k, modality, architecture, 8, (0, 1))


def test_the_graph_of_a_pair_client_joins_its_sides():
    graph = Graph("pair clip+clip", PAIR)
    assert graph.nodes == [("image", r) for r in ("body", "down", "up")] + [
        ("text", r) for r in ("body", "down", "up")
    ] + [("", "end")]
    assert graph.near_VV[6].tolist() == [0, 0, 0.5, 0, 0, 0.5, 0]  # the end, between both bridges
    assert graph.near_VV[0].tolist() == [0, 1, 0, 0, 0, 0, 0] and graph.near_VV[1].tolist()[:3] == [0.5, 0, 0.5]
    assert graph.node_of("text.up.bias") == 5 and Graph("image vit", IMAGE).node_of("head.bias") == 3
    features = Graph("image vit", IMAGE).features_VF
    assert features[1, :6].tolist() == [0, 1, 0, 0, 1, 0]  # down, of images
    assert features[1, 6:8].tolist() == pytest.approx([0.1, 0.2]) and features[1, 8:].tolist() == [0] * 4  # 2 x 4
    assert not torch.equal(features[0, 8:], Graph("image beit", IMAGE).features_VF[0, 8:])


def test_what_is_made_fits_and_differs_by_client():
    """Tensors of one role and shape have one decoder for all modalities; at first a bridge says nearly nothing."""
    made = strategy()
    one, other, text = (
        made.made(who) for who in (known(0, "image", "vit"), known(1, "image", "vit"), known(2, "text", "bert"))
    )
    assert {name: tuple(v.shape) for name, v in one.items()} == IMAGE
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert len(made.hyper.decoders) == 6 and decoder_of("text.up.weight", (4, 2)) == "up-weight-4x2"
    assert torch.allclose(one["image.down.weight"], text["text.down.weight"], atol=0.3)
    assert one["image.up.weight"].abs().max() < 0.2 < one["image.down.weight"].abs().max()
    assert made.made(known(3, "image", "unknown")) == {}


def test_one_step_of_sgd_is_the_rule_by_hand():
    """phi <- phi + rate sum_k p_k J_k^T (trained_k - made_k), and the same for the client's vector at its own rate."""
    made = strategy(optimizer="sgd", steps=1, rate=0.1, client_rate=0.5)
    who = [known(0, "image", "vit"), known(1, "text", "bert")]
    before = {n: p.detach().clone() for n, p in made.hyper.named_parameters()}
    vectors = [made.vector(k).detach().clone() for k in (0, 1)]
    shares = [0.25, 0.75]
    ups, inner = [], torch.zeros(())
    for client, p in zip(who, shares, strict=True):
        now = made.made(client)
        ups.append({n: v.detach() + 1.0 for n, v in now.items()})  # trained - made = 1 everywhere
        inner = inner + p * sum(v.sum() for v in now.values())  # its gradient is J^T 1
    along = torch.autograd.grad(inner, [*made.hyper.parameters(), made.vector(0), made.vector(1)], allow_unused=True)
    found = made.learn([Reply(c, Adapters(up, 8)) for c, up in zip(who, ups, strict=True)], shares)
    numbers = [sum(v.numel() for v in up.values()) for up in ups]
    assert found["bridge/distance"] == pytest.approx(
        sum(p * n / 2 for p, n in zip(shares, numbers, strict=True)), rel=1e-5
    )
    for (name, p), direction in zip(made.hyper.named_parameters(), along, strict=False):
        assert torch.allclose(p, before[name] + 0.1 * direction, atol=1e-5), name
    for k in (0, 1):
        assert torch.allclose(made.vector(k), vectors[k] + 0.5 * along[k - 2], atol=1e-5)


def test_rounds_bring_the_hypernetwork_to_what_clients_trained(tmp_path):
    half = FedMBridgeClient(FedMBridgeClientSettings(**OWN))
    server, federation = (
        FedMBridge(FedMBridgeSettings(steps=60), FakeResources()),
        ToyFederation(half, tmp_path, (8, 24)),
    )
    metrics = rounds(server, federation, 2)
    assert not federation.faults and server.judged_model() is None
    assert metrics[-1]["bridge/left"] < 0.5 * metrics[-1]["bridge/distance"]
    inner = WIDTH // 2
    values = 2 * WIDTH * inner + inner + WIDTH + CLASSES * (WIDTH + 1)
    assert metrics[-1]["bytes/formula_up"] == metrics[-1]["bytes/formula_down"] == 4 * values
    tensors, meta = server.state()
    other = FedMBridge(FedMBridgeSettings(steps=60), FakeResources())
    other.restore(tensors, meta)
    assert same(other.state()[0], tensors, atol=0) and other.state()[1] == meta
    assert same(other.made(federation.clients[0]), server.made(federation.clients[0]), atol=0)


def test_a_client_starts_from_what_was_made(tmp_path):
    """A step of size 0 gives back bridge and head as they came; outside, the model has the head and no bridge."""
    still = FedMBridgeClient(FedMBridgeClientSettings(**OWN | {"learning_rate": LearningRate(0.0), "optimizer": "sgd"}))
    client = ToyClient(0, tmp_path)
    start = still.train(client, Adapters({}))
    came = {name: value + 0.5 for name, value in start.tensors.items()}
    client.memory.now = (2, 1)
    up = still.train(client, Adapters(came))
    assert same(up.tensors, came, atol=0) and up.metrics["task"] > 0
    assert torch.equal(client.model.classifier.weight, came["head.weight"])
    assert client.model.state_dict().keys() == ToyClient(1, tmp_path).model.state_dict().keys()


def test_decay_takes_from_what_differs_and_not_from_what_is_common():
    """SGD with rate 1 on a distance of zero moves by decay alone: decoders' weights halve, biases and the rest stay."""
    server, client = (
        strategy(optimizer="sgd", rate=1.0, client_rate=0.0, steps=1, weight_decay=0.5),
        known(0, "image", "vit"),
    )
    before = {name: value.clone() for name, value in server.hyper.state_dict().items()}
    with torch.no_grad():
        made = {name: value.clone() for name, value in server.made(client).items()}
    server.learn([Reply(client, Adapters(made, 8))], [1.0])
    for name, value in server.hyper.state_dict().items():
        halved = name.startswith("decoders.") and name.endswith("weight")
        assert torch.allclose(value, before[name] * (0.5 if halved else 1.0), atol=1e-6), name
