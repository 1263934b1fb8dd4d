"""FedMEKT: KL_T and reconstruction by hand, what goes to whom, both sides learn what they should."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from client_app.methods.representations.fedmekt import FedMEKTClient, FedMEKTClientSettings
from client_app.opening import open_client
from florilegium.data.public import open_public
from florilegium.federation.federation import Client
from florilegium.learning.fit import LearningRate
from florilegium.learning.losses import feature_kl
from florilegium.protocol.codec import Header
from florilegium.protocol.payloads import Features, Nothing, PublicSet
from florilegium.resources import Resources
from strategies.blocks.public_set import PublicSetSettings
from strategies.representations.fedmekt import FedMEKT, FedMEKTSettings, centred, grown, mean_pairwise_cosine

MIX = [
    "clients.mix=[{modality: image, model: resnet}, {modality: text, model: bert}, {modality: pair, model: vit+bert}]"
]
PUBLIC = PublicSetSettings(samples=12, fresh=False)


def test_the_transfer_loss_by_hand():
    """T = 3: softmax(3 ln 3 / 3, 0) = (3/4, 1/4) against (1/2, 1/2): (3/4 ln 3/2 + 1/4 ln 1/2) * 9."""
    teacher, student = torch.tensor([[3 * math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = 9 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert feature_kl(teacher, student, 3.0).item() == pytest.approx(expected)


def test_a_unit_vector_grows_to_the_scale_of_a_representation():
    z = torch.tensor([[1.0, -1.0, 1.0, -1.0]])  # as LayerNorm leaves it
    assert torch.allclose(grown(normalize(z, dim=-1)), z)


@pytest.fixture
def strategy(toy_conf):
    def made(**settings):
        given = {"architecture": "vit+bert", "public": PUBLIC} | settings
        return FedMEKT(FedMEKTSettings(**given), Resources(toy_conf("method=fedmekt")))

    return made


def test_what_a_decoder_should_give(strategy):
    """Ids 5, 5, 7 and padding: counts 2 and 1, over sqrt 5; pixels as they are."""
    server = strategy().server
    words = server.original("text", torch.tensor([[5, 5, 7, 0]]))
    assert words[0, 5].item() == pytest.approx(2 / 5**0.5) and words[0, 7].item() == pytest.approx(1 / 5**0.5)
    assert words.norm().item() == pytest.approx(1)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(server.original("image", x), x.flatten(1))
    code, body = server.codes("image", x)
    assert code.shape == (2, 32) and body.shape == (2, 32)
    expected = (server.decoders["image"](code) - x.flatten(1)).square().mean()
    assert torch.allclose(server.loss("image", code, x), expected)


def test_each_client_gets_the_sides_it_reads(strategy):
    server = strategy()
    public = server.public.drawn(1)
    own = server.embedded(server.inputs(public), second=True)
    widths = {
        m: (
            server.down(public, own, Client(1, 0, m)).image.shape[1],
            server.down(public, own, Client(1, 0, m)).text.shape[1],
        )
        for m in ("image", "text", "pair")
    }
    assert widths == {"image": (64, 0), "text": (0, 64), "pair": (64, 64)}
    one = server.embedded(server.inputs(public), second=False)
    assert [len(layers) for layers in one.values()] == [1, 1]
    assert torch.allclose(one["image"][0].norm(dim=1), torch.ones(12), atol=1e-5)


def test_the_server_learns_to_reconstruct_and_to_agree(strategy):
    server = strategy(epochs=6, transfer=10.0, learning_rate=0.01)
    public = server.public.drawn(1)
    inputs = server.inputs(public)
    target = {"text": normalize(torch.randn(12, 32, generator=torch.Generator().manual_seed(0)), dim=-1)}
    told = [server.learn(inputs, target, {}, r) for r in (1, 2, 3)]
    assert told[0].keys() == {"server/reconstruct_image_image", "server/reconstruct_text_text", "server/transfer_text"}
    assert all(told[-1][name] < told[0][name] for name in told[0])


def test_the_mean_pairwise_cosine_by_hand():
    """Cosines 0, 1 and 0 of three rows; of one point 1; of one row there is none."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert mean_pairwise_cosine(rows) == pytest.approx(1 / 3)
    assert mean_pairwise_cosine(rows[:1].expand(5, 2)) == pytest.approx(1) and mean_pairwise_cosine(rows[:1]) == 0
    # the mean of the first two rows is (1/2, 1/2): what is left points to either side
    half = 0.5**0.5
    assert torch.allclose(centred(rows[:2]), torch.tensor([[half, -half], [-half, half]]))


def test_a_side_that_is_one_point_is_left_out_of_the_transfer(strategy, caplog):
    apart, point = torch.eye(4), torch.eye(4)[:1].expand(4, 4)
    given, figures = strategy(collapse=0.9).told({"image": [apart], "text": [point]})
    assert torch.allclose(given["image"][0], centred(apart)) and given["text"] == []
    assert figures["server/cosine_text"] == pytest.approx(1) and figures["server/cosine_image"] == pytest.approx(0)
    assert (figures["server/left_out_image"], figures["server/left_out_text"]) == (0, 1)
    assert "text embeddings of the server have a mean cosine of 1.000" in caplog.text
    as_they_are, _ = strategy(collapse=1.0, centre=False).told({"image": [apart], "text": [point]})
    assert torch.equal(as_they_are["text"][0], point) and torch.equal(as_they_are["image"][0], apart)
    merged, bodies, _ = strategy().spread_out({"image": apart, "text": point}, {"text": point})
    assert list(merged) == ["image"] and bodies == {}


def test_the_server_s_bodies_may_be_a_clip_that_stays_as_it_is(toy_conf):
    """The embedded mini CLIP: a pass of the autoencoder moves the projections and the decoders alone."""
    conf = toy_conf("method=fedmekt", "architectures@clients.architectures=small", "clients.tokenizer=null")
    server = FedMEKT(FedMEKTSettings(public=PUBLIC, target="contrast", epochs=1), Resources(conf))
    before = {name: value.clone() for name, value in server.server.state_dict().items()}
    inputs = server.inputs(server.public.drawn(1))
    assert set(server.learn(inputs, {}, {}, 1)) == {"server/contrast"}
    moved = {name for name, value in server.server.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"encoders.{side}.project.{part}" for side in ("image", "text") for part in ("weight", "bias")}
    _, figures = server.told(server.embedded(inputs, second=False))
    assert figures["server/left_out_text"] == 0


def test_a_code_may_give_back_the_pairs_other_side(strategy):
    server = strategy(reconstruct="both", epochs=1)
    told = server.learn(server.inputs(server.public.drawn(1)), {}, {}, 1)
    assert {f"server/reconstruct_{a}_{b}" for a in ("image", "text") for b in ("image", "text")} == told.keys()


def test_the_same_seed_the_same_server_and_a_checkpoint_holds_it(strategy):
    one, two = strategy(), strategy()
    (tensors, meta), (again, _) = one.state(), two.state()
    assert all(torch.equal(tensors[n], again[n]) for n in tensors)
    two.learn(two.inputs(two.public.drawn(1)), {}, {}, 1)
    two.restore(tensors, meta)
    assert all(torch.equal(v, tensors[n]) for n, v in two.state()[0].items())


def opened(conf, k, round_, step):
    client = open_client(conf, {"partition-id": k}, Header("method", round_, step))
    client.memory.begin()
    return client


@pytest.mark.parametrize(("k", "widths"), [(0, (32, 0)), (1, (0, 64)), (2, (64, 64))])
def test_a_second_layer_travels_where_it_is_as_wide(k, widths, toy_conf):
    """The toy ResNet's body is 16 wide, the others' 32."""
    conf, half = toy_conf("method=fedmekt", *MIX), FedMEKTClient(FedMEKTClientSettings(pretrain_epochs=1))
    client, pairs = opened(conf, k, 0, 1), open_public(conf)
    half.train(client, Nothing())
    client.save()
    told = half.represent(opened(conf, k, 0, 2), PublicSet(pairs.order, pairs.ids[:12]))
    assert (told.image.shape[1], told.text.shape[1]) == widths
    g = normalize(torch.randn(12, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    report = half.distill(opened(conf, k, 0, 3), Features(pairs.ids[:12], g, g)).metrics
    sides = [side for side, width in zip(("image", "text"), widths, strict=True) if width]
    assert {f"transfer_{side}" for side in sides} | {"private"} <= report.keys()
    assert {n for n in report if n.startswith("second")} == {
        f"second_{side}" for side, width in zip(("image", "text"), widths, strict=True) if width == 64
    }


def test_a_client_without_embeddings_learns_its_task_alone(toy_conf):
    conf, half = toy_conf("method=fedmekt", *MIX), FedMEKTClient(FedMEKTClientSettings(pretrain_epochs=1))
    client, pairs = opened(conf, 1, 0, 1), open_public(conf)
    half.train(client, Nothing())
    client.save()
    nothing = Features(pairs.ids[:12], torch.zeros(12, 0), torch.zeros(12, 0))
    report = half.distill(opened(conf, 1, 0, 2), nothing).metrics
    assert "private" in report and not [name for name in report if name.startswith(("transfer", "second"))]
    literal = FedMEKTClient(FedMEKTClientSettings(mix_private=False))
    assert literal.distill(opened(conf, 1, 0, 2), nothing).metrics == {}


def test_a_client_follows_the_server(toy_conf):
    conf = toy_conf("method=fedmekt", *MIX)
    half = FedMEKTClient(
        FedMEKTClientSettings(
            pretrain_epochs=1,
            transfer=10.0,
            second_layer=0.0,
            mix_private=False,
            transfer_epochs=15,
            learning_rate=LearningRate(text=0.01),
        )
    )
    client, pairs = opened(conf, 1, 0, 1), open_public(conf)
    half.train(client, Nothing())
    client.save()
    asked, ids = PublicSet(pairs.order, pairs.ids[:12]), pairs.ids[:12]
    before = half.represent(opened(conf, 1, 0, 2), asked).text
    target = normalize(torch.randn(1, 32, generator=torch.Generator().manual_seed(0)), dim=-1).expand(12, -1)
    client = opened(conf, 1, 0, 2)
    half.distill(client, Features(ids, torch.zeros(12, 0), target))
    client.save()
    after = half.represent(opened(conf, 1, 0, 3), asked).text
    assert (after * target).sum(-1).mean() > (before * target).sum(-1).mean() + 0.1
