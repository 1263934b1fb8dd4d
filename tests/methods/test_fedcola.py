"""FedCola: what is attention, who averages it, compensation, and the other modality's weights, by hand."""

import pytest
import torch

from client_app.batches import ClientError
from client_app.methods.modules.fedcola import FedColaClient, FedColaClientSettings, complemented, wire_names
from florilegium.federation.federation import Client as Known
from florilegium.federation.federation import Reply
from florilegium.learning.fit import LearningRate
from florilegium.protocol.payloads import Adapters
from strategies.modules.fedcola import FedCola, FedColaSettings
from tests.methods.test_modules import HIDDEN, LAYERS, TextClient, plain_init
from tests.toy_federation import ToyClient, ToyFederation, rounds, same

OWN = {"pretrain_epochs": 1, "local_epochs": 1, "batch": 8, "learning_rate": LearningRate(0.01, 0.01)}
QUERY = "body.net.encoder.layer.1.attention.self.query"


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyClient, "__init__", plain_init(ToyClient.__init__))
    made = TextClient(0, tmp_path)
    made.architecture = "bert"
    return made


def test_attention_has_names_that_all_encoders_of_a_body_share(client):
    names = wire_names(client)
    assert names[f"{QUERY}.weight"] == "attention.text.bert.1.query.weight"
    assert names["body.net.encoder.layer.0.attention.output.dense.bias"] == "attention.text.bert.0.attended.bias"
    assert names["body.net.encoder.layer.0.intermediate.dense.bias"].startswith("own.")
    assert names["classifier.weight"] == "own.classifier.weight" and names.keys() == client.model.state_dict().keys()
    assert sum(name.startswith("attention.") for name in names.values()) == LAYERS * 4 * 2


def test_the_other_modality_is_added_to_the_weights_meanwhile(client):
    """W + s W_aux: s is zero at first, so nothing changes; at s = 2 every map has W + 2 W_aux; outside W is back."""
    before = {name: value.clone() for name, value in client.model.state_dict().items()}
    scores, theirs = client.model.eval()(client.x), torch.randn(HIDDEN, HIDDEN)
    with complemented(client, {"1.query.weight": theirs}, merge=False):
        assert torch.equal(client.model(client.x), scores)
        layer = client.model.get_submodule(QUERY)
        layer.parametrizations.weight[0].scale.data.fill_(2.0)
        assert torch.allclose(layer.weight, before[f"{QUERY}.weight"] + 2 * theirs)
        assert {p.shape for n, p in layer.named_parameters() if "weight.0" in n} == {(1,), (HIDDEN, HIDDEN)}
    assert same(client.model.state_dict(), before, atol=0)
    with complemented(client, {"1.query.weight": theirs}, merge=True):
        client.model.get_submodule(QUERY).parametrizations.weight[0].scale.data.fill_(-1.0)
    assert torch.allclose(client.model.state_dict()[f"{QUERY}.weight"], before[f"{QUERY}.weight"] - theirs)
    with pytest.raises(ClientError, match=r"the server's 1.query.weight is \(3, 8\), not \(8, 8\)"):
        with complemented(client, {"1.query.weight": torch.zeros(3, 8)}, merge=False):
            pass


def test_a_client_trains_the_model_that_came_and_sends_no_auxiliary_weights(client):
    half = FedColaClient(FedColaClientSettings(**OWN))
    start = half.train(client, Adapters({}))
    assert not start.metrics and all(n.split(".")[0] in ("attention", "own") for n in start.tensors)
    auxiliary = {"auxiliary.0.query.weight": torch.randn(HIDDEN, HIDDEN)}
    client.memory.now = (2, 1)
    up = half.train(client, Adapters(start.tensors | auxiliary))
    assert up.tensors.keys() == start.tensors.keys() and up.metrics["task"] > 0
    assert all(
        not torch.equal(up.tensors[n], start.tensors[n]) for n in ("own.classifier.weight", "own.project.weight")
    )
    with pytest.raises(ClientError, match=r"the server's model has no own.classifier.bias"):
        half.train(client, Adapters({n: v for n, v in start.tensors.items() if n != "own.classifier.bias"}))


def reply(k, modality, architecture, rows, **values):
    tensors = {name.replace("_", "."): torch.tensor([value]) for name, value in values.items()}
    return Reply(Known(k, k, modality, architecture, rows, (0, 1)), Adapters(tensors, rows))


def test_who_averages_what():
    """Rows 10 and 30. Attention of one body: an image client's 0 and a retrieval client's 4 give 3. What is own stays
    with the architecture; with compensation it moves by 10 of the 40 rows that share the attention. What shares no
    attention moves as a whole."""
    replies = [
        reply(0, "image", "vit", 10, attention_image_vit=0.0, own_head=8.0),
        reply(1, "pair", "vit+bert", 30, attention_image_vit=4.0, own_head=100.0),
        reply(2, "text", "bert", 50, own_head=50.0),
        reply(3, "image", "resnet", 20, own_head=6.0),
    ]
    zero = torch.zeros(1)
    for compensation, own in ((False, 8.0), (True, 2.0)):
        server = FedCola(FedColaSettings(compensation=compensation))
        server.weights = {f"image {body}.attention.image.{body}": zero for body in ("vit", "beit")}
        server.weights |= {f"image {body}.own.head": zero for body in ("vit", "beit", "resnet")}
        assert server.averaged("image vit", "attention.image.vit", zero, replies).item() == 3.0
        assert server.averaged("image vit", "own.head", zero, replies).item() == own
        assert server.averaged("image resnet", "own.head", zero, replies).item() == 6.0
        assert server.averaged("image beit", "own.head", zero, replies).item() == 0.0  # nobody of it came


def test_the_auxiliary_weights_are_those_that_fit():
    """The first text body by name; a place that the own body has not, another shape, and biases are left out."""
    square, other = torch.ones(2, 2), torch.ones(3, 2)
    models = {
        "image vit": {"attention.image.vit.0.query.weight": square, "attention.image.vit.1.key.weight": square},
        "text bert": {
            "attention.text.bert.0.query.weight": 5 * square,
            "attention.text.bert.0.query.bias": square[0],
            "attention.text.bert.1.key.weight": other,
            "attention.text.bert.2.query.weight": square,
        },
        "text roberta": {"attention.text.roberta.1.key.weight": square},
        "pair vit+bert": {},
    }
    found = FedCola.auxiliary("image vit", models)
    assert found.keys() == {"auxiliary.0.query.weight"} and found["auxiliary.0.query.weight"][0, 0] == 5
    assert FedCola.auxiliary("pair vit+bert", models) == {} and FedCola.auxiliary("image vit", {"image vit": {}}) == {}


def test_clients_of_one_architecture_without_attention_are_fedavg(tmp_path):
    """8 and 24 rows: the mean by rows of the whole model, through the server's own checks."""
    half, server = FedColaClient(FedColaClientSettings(**OWN)), FedCola(FedColaSettings())
    federation = ToyFederation(half, tmp_path, (8, 24), norm=True)
    metrics = rounds(server, federation, 1)
    assert not federation.faults and metrics[-1]["weights/replies"] == 2
    ups = [ToyClient(k, tmp_path, n, norm=True, round_=2).model.state_dict() for k, n in ((0, 8), (1, 24))]
    found = {n.removeprefix("image toy.own."): v for n, v in server.weights.items()}
    for name, value in found.items():
        mean = (ups[0][name].double() + 3 * ups[1][name].double()) / 4
        expected = mean if value.is_floating_point() else mean.round()
        assert torch.allclose(value.double(), expected, atol=1e-5), name
    assert server.judged_model() is None
