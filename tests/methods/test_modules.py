"""LoRA-FL, Bias-FL and FedDAT: places, factors and adapters by hand, who averages with whom, bytes of the papers."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from client_app.batches import ClientError
from client_app.blocks.modules import low_rank
from client_app.blocks.own_model import OwnModelSettings, epochs_of
from client_app.methods.modules.biasfl import BiasFLClient
from client_app.methods.modules.feddat import (
    Adapter,
    DualAdapter,
    FedDATClient,
    FedDATClientSettings,
    adapters,
    dual,
)
from client_app.methods.modules.lorafl import LoRAFLClient, LoRAFLClientSettings
from florilegium import seeds
from florilegium.federation.federation import Client as Known
from florilegium.federation.federation import Reply
from florilegium.learning.averaging import named, part
from florilegium.learning.fit import LearningRate
from florilegium.learning.losses import logit_kl
from florilegium.models.bodies import Classifier, ModelError
from florilegium.models.image import ImageBody
from florilegium.models.places import attention_places, output_places, place_of
from florilegium.models.text import TextBody
from florilegium.protocol.payloads import Adapters
from strategies.modules.averaged_modules import AveragedModules, AveragedModulesSettings
from tests.toy_federation import ToyClient, same

HIDDEN, LAYERS = 8, 2
OWN = {"pretrain_epochs": 1, "local_epochs": 1, "batch": 8, "learning_rate": LearningRate(0.01, 0.01)}


def bert():
    reads = SimpleNamespace(pad=0, size=20, longest=6)
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 16}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    with seeds.scoped("bert"):
        return Classifier(TextBody("bert", sizes | still, reads), HIDDEN, 4, 2)


class TextClient(ToyClient):
    """A client of six-token texts with a tiny BERT."""

    modality = "text"

    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        stored, self.model = self.memory.read("model"), bert()
        if stored:
            self.model.load_state_dict(stored[0])
        self.x = torch.randint(1, 20, (self.examples, 6), generator=seeds.generator("texts", self.id))
        self.data.train.x = self.data.test.x = self.x


def resnet():
    sizes = {"input_size": 32, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    with seeds.scoped("resnet"):
        return Classifier(ImageBody("resnet", sizes), 16, 4, 2)


class ImageClient(ToyClient):
    """A client of pictures with a tiny ResNet."""

    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        self.model = resnet()
        self.x = torch.randn(self.examples, 3, 32, 32, generator=seeds.generator("pictures", self.id))
        self.data.train.x = self.data.test.x = self.x


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyClient, "__init__", plain_init(ToyClient.__init__))
    return TextClient(0, tmp_path)


def plain_init(init):
    """ToyClient's, for a stored model of another kind."""

    def made(self, id_, folder, examples=16, norm=False, round_=1):
        init(self, id_, folder / "nothing stored", examples, norm, round_)
        self.folder = folder / f"client-{id_}"
        self.memory = type(self.memory)(self.folder, round_, 1)
        self.previous_state = self.memory.read("model") or ({}, {"trained": 0})
        self.data.test = SimpleNamespace(x=self.x)

    return made


def test_places_have_one_name_in_all_architectures():
    names = {
        "body.net.layers.3.attention.q_proj": "3.query",
        "body.net.encoder.layer.3.attention.self.query": "3.query",
        "body.net.transformer.layer.3.attention.q_lin": "3.query",
        "body.net.encoder.layer.3.attention.output.dense": "3.attended",
        "body.net.encoder.layer.3.output.dense": "3.output",
        "body.net.layers.3.mlp.fc2": "3.output",
        "body.net.transformer.layer.3.ffn.lin2": "3.output",
        "body.net.encoder.stages.0.layers.1.layer.0.convolution": "encoder.stages.0.layers.1.layer.0.convolution",
        "body.net.embeddings.patch_embeddings.projection": "embeddings.patch_embeddings.projection",
    }
    assert {name: place_of(name) for name in names} == names
    assert list(attention_places(bert())) == ["0.query", "0.value", "1.query", "1.value"]
    assert list(output_places(bert())) == ["0.output", "1.output"]
    with pytest.raises(ModelError, match="no place for modules"):
        attention_places(Classifier(nn.Linear(2, 8), 8, 4, 2))


def test_low_rank_factors_by_hand(client):
    """W x + alpha / r B A x; outside, the model is as it was. A is the same at all clients, B starts at zero."""
    before = {name: value.clone() for name, value in client.model.state_dict().items()}
    scores = client.model(client.x)
    with low_rank(client, {}, 2, 4.0) as factors:
        assert factors.keys() == {f"{n}.{role}.{f}" for n in (0, 1) for role in ("query", "value") for f in "AB"}
        assert torch.equal(client.model(client.x), scores) and factors["0.query.A"].abs().max() <= HIDDEN**-0.5
        given = {name: torch.randn(p.shape, generator=seeds.generator(name)) for name, p in factors.items()}
    with low_rank(client, given, 2, 4.0):
        layer = client.model.get_submodule("body.net.encoder.layer.1.attention.self.value")
        x = torch.randn(3, HIDDEN, generator=seeds.generator("x"))
        plain = x @ before["body.net.encoder.layer.1.attention.self.value.weight"].T
        plain = plain + before["body.net.encoder.layer.1.attention.self.value.bias"]
        assert torch.allclose(layer(x), plain + 4 / 2 * x @ given["1.value.A"].T @ given["1.value.B"].T, atol=1e-5)
    assert same(client.model.state_dict(), before, atol=0) and torch.equal(client.model(client.x), scores)
    assert all(p.requires_grad for p in client.model.parameters())
    with pytest.raises(ClientError, match=r"0.query.A is \(2, 8\), expected \(3, 8\)"), low_rank(client, given, 3, 4.0):
        pass
    assert same(client.model.state_dict(), before, atol=0)


@pytest.mark.parametrize("kind", [TextClient, ImageClient])
@pytest.mark.parametrize(
    "half, moves",
    [
        (LoRAFLClient(LoRAFLClientSettings(rank=2, **OWN)), lambda name: False),
        (BiasFLClient(OwnModelSettings(**OWN)), lambda name: name.endswith("bias")),
        (FedDATClient(FedDATClientSettings(reduction=4, **OWN)), lambda name: False),
    ],
)
def test_the_body_is_frozen_and_the_head_learns(half, moves, kind, client, tmp_path):
    """Statistics of batch norm are the body's too: a ResNet's stay as they were, in Bias-FL as well."""
    client = kind(0, tmp_path)
    before = {name: value.clone() for name, value in client.model.state_dict().items()}
    start = half.train(client, Adapters({}))
    assert not start.metrics and same(client.model.state_dict(), before, atol=0)
    up = half.train(client, start)
    after = client.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"classifier.weight", "project.weight"} <= changed
    assert all(moves(name) for name in changed if name.startswith("body."))
    assert up.tensors.keys() == start.tensors.keys() and not same(up.tensors, start.tensors, atol=0)


def test_bytes_are_those_of_the_papers(client):
    """LoRA: r (H + H) for two projections of a layer. FedDAT: 2 H R + R + H a layer, R = H / 16: for H 768 and the 10.5
    layers that ViT, BEiT, BERT and DistilBERT have on the mean, the 3.0 MB of Table X (arXiv 2510.12254)."""

    def count(half):
        return sum(value.numel() for value in half.train(client, Adapters({})).tensors.values())

    assert count(LoRAFLClient(LoRAFLClientSettings(rank=2))) == LAYERS * 2 * 2 * (HIDDEN + HIDDEN)
    inner = HIDDEN // 4
    assert count(FedDATClient(FedDATClientSettings(reduction=4))) == LAYERS * (2 * HIDDEN * inner + inner + HIDDEN)
    paper = sum(p.numel() for p in Adapter(768, 768 // 16).parameters())
    assert paper == 74_544 and round(10.5 * paper * 4 / 2**20, 1) == 3.0
    biases = BiasFLClient(OwnModelSettings()).train(client, Adapters({})).tensors
    assert biases["1.inner.bias"].shape == (16,) and not any(name.startswith("classifier") for name in biases)


def test_both_paths_of_an_adapter_by_hand():
    """The last map gives 2 and its adapters c, s and the frozen one f: 2 + s, and 2 + (c + f) / 2."""
    layer = DualAdapter(nn.Identity(), 1, 1)
    for which, slope in (("local", 1.0), ("shared", 5.0), ("frozen", 3.0)):
        adapter = layer.get_submodule(which)
        for p, value in zip(adapter.parameters(), (slope, 0.0, 1.0, 0.0), strict=True):
            p.data.fill_(value)
    assert layer(torch.tensor([[2.0]])).item() == 2 + (2 + 6) / 2
    layer.path = "shared"
    assert layer(torch.tensor([[2.0]])).item() == 12
    assert layer(torch.full((1, 1, 2, 2), 2.0)).flatten().tolist() == [12.0] * 4  # channels of a convolution


def test_the_local_adapter_is_no_copy_of_the_shared_one(client):
    """The released code draws each from N(0, 0.02) for itself; the frozen one is the shared one as it came."""
    with dual(client, {}, {}, 4) as layers:
        local, shared, frozen = (adapters(layers, which) for which in ("local", "shared", "frozen"))
        assert all(torch.equal(shared[name], frozen[name]) for name in shared)
        weights = [name for name in local if name.endswith("weight")]
        assert not any(torch.equal(local[name], shared[name]) for name in weights)
        assert torch.cat([local[name].flatten() for name in weights]).std().item() == pytest.approx(0.02, rel=0.3)
    with dual(client, {}, {}, 4) as again:  # in training and in evaluation alike
        assert same(adapters(again, "local"), local, atol=0)


def test_mutual_distillation_by_hand(client):
    """One step of size 0: half of the cross-entropies and of both divergences; a batch makes two steps."""
    still = OWN | {"batch": 64, "learning_rate": LearningRate(0.0, 0.0), "optimizer": "sgd"}
    half = FedDATClient(FedDATClientSettings(reduction=2, temperature=2.0, **still))
    start = half.train(client, Adapters({}))
    random = seeds.generator("adapters")
    came = Adapters({name: torch.randn(value.shape, generator=random) for name, value in start.tensors.items()})
    local = part(client.memory.folder and read(client), "local")
    client.memory.now = (2, 1)
    up = half.train(client, came)
    with dual(client, came.tensors, local, 2) as layers, torch.no_grad():
        client.model.eval()
        teacher = client.model(client.x)
        for layer in layers.values():
            layer.path = "shared"
        shared = client.model(client.x)
        assert adapters(layers, "frozen").keys() == came.tensors.keys()
    ce = (cross_entropy(shared, client.labels) + cross_entropy(teacher, client.labels)) / 4
    ones = torch.ones(len(shared))
    kl = (logit_kl(teacher, shared, ones, 2.0) + logit_kl(shared, teacher, ones, 2.0)) / 4
    assert up.metrics["task"] == pytest.approx(ce.item(), rel=1e-4) and up.metrics["steps"] == 2
    assert up.metrics["distillation"] == pytest.approx(kl.item(), rel=1e-3)
    assert same(up.tensors, came.tensors, atol=0)


def test_the_first_training_is_longer_and_a_fresh_start_is_none(client):
    """12 epochs, then 2 and what brings at least 3 more batches: 16 rows in batches of 8 are two, so two epochs."""
    given = OwnModelSettings(pretrain_epochs=12, local_epochs=2, extra_batches=3, batch=8)
    BiasFLClient(given).train(client, Adapters({}))
    client.save()
    client = TextClient(0, client.folder.parent)
    client.memory.now = (1, 2)
    assert epochs_of(client, given) == 12
    client.memory.now = (2, 1)
    assert epochs_of(client, given) == 4


def read(client):
    """What the client's last message left of its modules."""
    client.memory.now = (9, 9)
    return client.memory.read("modules")[0]


@pytest.mark.parametrize("sharing, expected", [("all", 3.0), ("modality", 1.5), ("architecture", 1.0)])
def test_who_averages_with_whom(sharing, expected):
    """Values 1 (vit), 2 (beit) and 6 (bert), of equal clients; a ResNet's module of another shape counts nowhere."""
    groups = {"image vit": 1.0, "image beit": 2.0, "text bert": 6.0}
    replies = [
        Reply(Known(k, k, *group.split(" "), 8, (0, 1)), Adapters({"0.query.A": torch.full((2, 2), v)}, 8))
        for k, (group, v) in enumerate(groups.items())
    ]
    replies.append(
        Reply(Known(9, 9, "image", "resnet", 8, (0, 1)), Adapters({"0.query.A": torch.full((3, 2), 99.0)}, 8))
    )
    strategy = AveragedModules(AveragedModulesSettings(sharing=sharing))
    found = strategy.mean("image vit", "0.query.A", torch.zeros(2, 2), replies)
    assert torch.equal(found, torch.full((2, 2), expected))
    gone = strategy.mean("image clip", "5.query.A", torch.full((2, 2), 7.0), replies)
    assert gone[0, 0] == 7  # a module that nobody has stays


def test_a_round_through_the_server(client, tmp_path):
    """Two texts clients, 8 and 24 rows: the factors' mean by rows; then both get it."""
    half, asked = LoRAFLClient(LoRAFLClientSettings(rank=2, **OWN)), []

    def ask(phase, payload, kind, clients=None, check=None, **_):
        replies = []
        for known in clients or federation.cohort:
            body = half.train(
                TextClient(known.id, tmp_path / "run", known.examples), payload(known) if callable(payload) else payload
            )
            check and check(known, body)
            replies.append(Reply(known, body))
        asked.append(replies)
        return replies

    known = [Known(100 + k, k, "text", "bert", n, (0, 1)) for k, n in ((0, 8), (1, 24))]
    federation = SimpleNamespace(ask=ask, clients=known, cohort=known)
    strategy = AveragedModules(AveragedModulesSettings())
    strategy.begin(federation)
    told = strategy.round(1, federation)
    assert [len(replies) for replies in asked] == [1, 2, 2]  # a fresh start, the first training, a round
    a, b = (x.body.tensors["1.value.B"] for x in asked[-1])
    assert torch.allclose(strategy.weights["text bert.1.value.B"], (a + 3 * b) / 4, atol=1e-6)
    assert told["weights/replies"] == 2 and strategy.judged_model() is None
    assert same(part(named("text bert", asked[0][0].body.tensors), "text bert"), asked[0][0].body.tensors)
