"""FedAFD: the server's aggregation and distillation by hand, what a client's training moves, a federation of all three
kinds of clients with its faults, resumed and counted."""

import json
import math
from functools import partial

import pytest
import torch
from flwr.app import Message

from client_app.methods.fedafd.client import FedAFDClient, FedAFDClientSettings
from client_app.methods.fedafd.fused import Fused, GranularityFusion, own
from client_app.opening import open_client
from florilegium import preflight
from florilegium.config import composition
from florilegium.data.public import open_public
from florilegium.federation.federation import Client, FederationError, Reply
from florilegium.methods.fedafd.fidelity import Divergences, other_view
from florilegium.protocol import codec
from florilegium.protocol.codec import Header
from florilegium.protocol.deltas import Sent
from florilegium.protocol.payloads import Features, Nothing, PublicSet, Report
from florilegium.resources import Resources
from strategies.fedafd import FedAFD, FedAFDSettings, apart, client_metrics
from tests.test_every_method import faults, lines
from tests.tiers import first

MIX = (
    "clients.mix=[{modality: image, model: resnet}, {modality: text, model: bert}, "
    "{modality: pair, model: resnet+bert}]"
)
SMALL = [
    "method=fedafd",
    "method.client.pretrain_epochs=1",
    "method.client.local_epochs=1",
    "method.server.pretrain_epochs=1",
    "evaluation.images_per_class=2",
]
ALONE = {"schedule": "alternate", "public_batch": 128}  # alignment in steps of its own; 64 pairs are one batch
IMAGE, TEXT, PAIR = Client(1, 0, "image"), Client(2, 1, "text"), Client(3, 2, "pair")


def server(toy_conf, *overrides):
    conf = toy_conf(*SMALL, MIX, *overrides)
    return FedAFD(composition.typed(FedAFDSettings, conf.method.server, "method.server"), Resources(conf))


def client(conf, id_, round_=1, step=1):
    return open_client(conf, {"partition-id": id_}, Header("method", round_, step))


def half(conf, **changes):
    s = composition.typed(FedAFDClientSettings, conf.method.client, "method.client")
    for key, value in changes.items():
        setattr(s.divergences if hasattr(s.divergences, key) else s, key, value)
    return FedAFDClient(s)


def two_axes(*, swapped=False):
    """e1, e2 (or e2, e1) in a width of 32."""
    return torch.eye(2, 32).flip(0) if swapped else torch.eye(2, 32)


# -- the server's arithmetic -------------------------------------------------------------------------------------------


def replies():
    """The image client sees the server's features, the pair client's images are swapped; texts have one client too."""
    none, ids = torch.zeros(2, 0), torch.arange(2)
    return [
        Reply(IMAGE, Features(ids, two_axes(), none)),
        Reply(PAIR, Features(ids, two_axes(swapped=True), two_axes())),
    ]


def test_aggregation_by_hand(toy_conf):
    """Scores -0.3133 and -1.3133 as in test_fedafd_parts: weights e / (e + 1) = 0.731 and 0.269; one text client: 1."""
    targets, metrics = server(toy_conf).aggregated(replies(), {"image": two_axes(), "text": two_axes()})
    assert targets["image"][0, :2].tolist() == pytest.approx([0.73106, 0.26894], abs=1e-5)
    assert torch.equal(targets["text"], two_axes())
    assert metrics["sed/weight_image/0"] == pytest.approx(0.73106, abs=1e-5) and metrics["sed/clients_text"] == 1
    assert metrics["sed/length_image"] == pytest.approx(math.hypot(0.73106, 0.26894), abs=1e-5)


def test_uniform_and_cross_change_the_anchor_or_nothing_else(toy_conf):
    uniform, _ = server(toy_conf, "method.server.aggregator=uniform").aggregated(
        replies(), {"image": two_axes(), "text": two_axes()}
    )
    assert uniform["image"][0, :2].tolist() == [0.5, 0.5]
    cross, _ = server(toy_conf, "method.server.compare=cross").aggregated(
        replies(), {"image": two_axes(), "text": two_axes(swapped=True)}
    )
    assert cross["image"][0, :2].tolist() == pytest.approx([0.26894, 0.73106], abs=1e-5)


def test_a_side_that_nobody_holds_is_left_alone(toy_conf):
    targets, metrics = server(toy_conf).aggregated(replies()[:1], {"image": two_axes(), "text": two_axes()})
    assert targets.keys() == {"image"} and metrics["sed/clients_text"] == 0


def test_distances_by_hand():
    own_BD, target_BD = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2, 2)
    assert apart(own_BD, target_BD, "mse").item() == 6.25 and apart(own_BD, target_BD, "l2").item() == 2.5


def test_distillation_goes_to_the_target_and_leaves_frozen_bodies(toy_conf):
    half = server(toy_conf, "method.server.retriever.kd_epochs=30", "method.server.distillation=100")
    half.freeze()
    before = half.retriever.state()
    targets = {"image": torch.eye(32)[0].expand(len(half.public), -1)}
    distance = [apart(half.features(1)["image"], targets["image"], "l2").item()]
    half.distill(targets, (1, 2))
    distance.append(apart(half.features(1)["image"], targets["image"], "l2").item())
    moved = {n for n, t in half.retriever.state().items() if not torch.equal(t, before[n])}
    assert distance[1] < distance[0] - 0.05
    assert moved == {"image.project.weight", "image.project.bias"}  # no batch norm of a frozen body either


def test_collapse_is_counted_and_named():
    bodies = [Reply(c, Report({"task": 1.0 + c.id, "baa/collapsed": float(c.id)}, 3)) for c in (IMAGE, TEXT, PAIR)]
    figures = client_metrics(bodies)
    assert figures["train/task"] == 2.0 and figures["baa/collapsed"] == 3.0 and figures["baa/collapsed/2"] == 2.0


# -- the client --------------------------------------------------------------------------------------------------------


def unit_rows(count, seed):
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 32, generator=random), dim=-1)


def trained(conf, id_, **changes):
    """A round of client `id_` with frozen encoders and features from a server; (client, before, after, report)."""
    one = client(conf, id_)
    method, P = half(conf, pretrain_epochs=0, **changes), open_public(conf)
    down = Features(P.ids, unit_rows(len(P), 1), unit_rows(len(P), 2))
    before = {n: t.clone() for n, t in one.model.state_dict().items()}
    report = method.train(one, down)
    return one, before, dict(one.model.state_dict()), report.metrics


def moved(before, after, under=""):
    return any(
        not torch.equal(before[n], after[n])
        for n in before
        if n.startswith(under) and "running" not in n and "num_batches" not in n
    )


@pytest.mark.parametrize("form", ["nonsat", "minimax", "grl"])
@pytest.mark.parametrize("id_", [0, 1, 2])
def test_alignment_alone_moves_encoder_and_discriminators(form, id_, toy_conf, monkeypatch):
    conf = toy_conf(*SMALL, MIX)
    monkeypatch.setattr("client_app.client.Client.private_batches", lambda *_: iter(()))
    one, before, after, metrics = trained(conf, id_, generator_loss=form, **ALONE)
    assert moved(before, after) and metrics["adversarial"] != 0 and "task" not in metrics
    assert {"baa/accuracy_in", "baa/gap_cross", "baa/collapsed"} <= metrics.keys()
    later = client(conf, id_, 2)
    kept = later.memory.read("adversary")[0]
    assert kept["in_adam.0.step"] == 1 and kept["in_adam.0.exp_avg"].abs().sum() > 0  # 64 pairs: one batch of 128


def test_released_alignment_leaves_pair_encoders_alone(toy_conf, monkeypatch):
    """D9: the encoder's update is a no-op on multimodal clients; their discriminators do train."""
    conf = toy_conf(*SMALL, MIX)
    monkeypatch.setattr("client_app.client.Client.private_batches", lambda *_: iter(()))
    _, before, after, _ = trained(conf, 2, pair_encoder_step=False, **ALONE)
    assert not moved(before, after)
    assert moved(*trained(conf, 0, pair_encoder_step=False, **ALONE)[1:3])


def test_joint_is_one_step_of_both_terms(toy_conf):
    conf = toy_conf(*SMALL, MIX)
    alternate, joint = trained(conf, 0, **ALONE)[3], trained(conf, 0)[3]
    assert alternate["steps"] == joint["steps"] + 1  # one public batch of its own
    assert joint["share/task"] + joint["share/adversarial"] == pytest.approx(1)


@pytest.mark.parametrize("most, steps", [(None, 8), (3, 3), (9, 8)])
def test_a_pass_over_the_public_set_may_be_cut_short(most, steps, toy_conf, monkeypatch):
    """64 pairs in batches of 8."""
    conf = toy_conf(*SMALL, MIX)
    monkeypatch.setattr("client_app.client.Client.private_batches", lambda *_: iter(()))
    metrics = trained(conf, 0, schedule="alternate", public_batch=8, public_batches=most)[3]
    assert metrics["steps"] == steps


def test_heads_learn_on_fused_features_from_the_first_epoch(toy_conf):
    """E0 trains the fusion where the server's encoders came first; without them it is the client's own model."""
    conf = toy_conf(*SMALL, MIX)
    _, fused, _ = with_encoders(conf, 0, round_=0)
    start = {n: t.clone() for n, t in fused.mix.state_dict().items()}
    report = half(conf, pretrain_epochs=2).train(client(conf, 0, 0, 3), Nothing())
    after = Fused(client(conf, 0, 1), half(conf).settings).mix.state_dict()
    assert moved(start, after) and report.metrics["steps"] == 2 * math.ceil(client(conf, 0).examples / 32)
    half(conf).train(lonely := client(conf, 1, 0, 3), Nothing())
    assert lonely.memory.read("fusion") is None and Fused(lonely, half(conf).settings).mix is None


def test_even_gates_start_at_one_half_and_then_learn():
    """In training and in evaluation, where batch norm has counted nothing yet: x~ = (x + g) / 2."""
    mix, random = GranularityFusion(8, even=True), torch.Generator().manual_seed(0)
    x_BD, g_BD = torch.randn(6, 8, generator=random), torch.randn(6, 8, generator=random)
    for mode in (True, False):
        mix.train(mode)
        assert torch.equal(mix(x_BD, g_BD), (x_BD + g_BD) / 2)
    mix.train()
    mix(x_BD, g_BD)[:, 0].sum().backward()
    assert mix.local2[-1].weight.grad[0].abs() > 0 and mix.pooled2[-1].bias.grad[0].abs() > 0
    assert not torch.allclose(GranularityFusion(8)(x_BD, g_BD), (x_BD + g_BD) / 2, atol=1e-2)


def with_encoders(conf, id_, fusion="gff", round_=1):
    """Client `id_` after the server's encoders came to it, at round 1 or 0."""
    strategy = FedAFD(composition.typed(FedAFDSettings, conf.method.server, "method.server"), Resources(conf))
    sides = ("image", "text") if id_ == 2 else (("image", "text")[id_],)
    whole = {n: t for n, t in strategy.retriever.state().items() if n.startswith(sides)}
    half(conf).represent(client(conf, id_, round_), Sent().to(id_, whole))
    later = client(conf, id_, round_, step=2)
    return later, Fused(later, half(conf, fusion=fusion).settings), strategy


def test_a_closed_gate_is_the_clients_own_model(toy_conf):
    conf = toy_conf(*SMALL, MIX)
    one, fused, _ = with_encoders(conf, 0)
    for net in (fused.mix.local2, fused.mix.pooled2):
        torch.nn.init.constant_(net[-1].bias, 50.0)  # M' = 1: x~ = x
    fused.train(False)
    one.model.eval()
    x = one.rows_as_inputs(one.data.test, torch.arange(4))
    assert torch.allclose(fused.logits(x), one.model(x), atol=1e-4)


def test_fusion_trains_beside_a_frozen_encoder_and_is_kept(toy_conf):
    conf = toy_conf(*SMALL, MIX)
    _, fused, _ = with_encoders(conf, 0)
    start = {n: t.clone() for n, t in fused.mix.state_dict().items()}
    half(conf, pretrain_epochs=0).train(client(conf, 0, step=3), Nothing())
    after = Fused(client(conf, 0, 2), half(conf).settings)
    assert moved(start, after.mix.state_dict()) and after.adam.state_dict()["state"]
    assert not any(p.requires_grad for net in after.frozen.values() for p in net.parameters())
    anew = Fused(client(conf, 0, 2), half(conf, reset_each_round=True).settings, training=True)  # D5
    assert same(start, anew.mix.state_dict()) and not anew.adam.state_dict()["state"]
    for round_ in (1, 2):  # it is judged with what it trained last, also after a round that it sat out
        judged = Fused(client(conf, 0, round_, 9), half(conf, reset_each_round=True).settings)
        assert same(judged.mix.state_dict(), after.mix.state_dict())


def same(a, b):
    return all(torch.equal(a[n], b[n]) for n in a)


def test_the_linear_control_never_looks_with_the_clients_own_encoder(toy_conf, monkeypatch):
    conf = toy_conf(*SMALL, MIX)
    one, fused, strategy = with_encoders(conf, 0, "global")
    monkeypatch.setattr("client_app.methods.fedafd.fused.own", None)
    x = one.rows_as_inputs(one.data.test, torch.arange(4))
    seen = strategy.server_model.eval().encode_image(x)
    assert torch.allclose(fused.logits(x), one.model.head(seen * 32**0.5), atol=1e-5) and fused.mix is None


@pytest.mark.parametrize("id_", [0, 1, 2])
def test_uploads_are_the_local_encoders_alone(id_, toy_conf):
    conf = toy_conf(*SMALL, MIX)
    one, _, _ = with_encoders(conf, id_)
    P = open_public(conf)
    up = half(conf).represent(one, PublicSet(P.order, P.ids))
    sides = ("image", "text") if id_ == 2 else (("image", "text")[id_],)
    for side in ("image", "text"):
        found = getattr(up, side)
        assert found.shape == (len(P), 32 if side in sides else 0)
        assert side not in sides or torch.allclose(found.norm(dim=1), torch.ones(len(P)), atol=1e-4)
    one.model.eval()
    x = {"image": P.images.float() / 127.5 - 1, "text": one.vocabulary(P.texts)}[sides[0]]
    assert torch.allclose(getattr(up, sides[0]), own(one, sides[0], x).detach(), atol=1e-5)


def test_other_views_have_holes_and_missing_words():
    images, texts = torch.full((200, 3, 8, 8), 255, dtype=torch.uint8), ("one two three four",) * 200
    holes, client_metrics = other_view(images, texts, torch.Generator().manual_seed(0))
    assert 20 < sum((i == 0).any().item() for i in holes) < 60 and (holes == 0).sum() % 48 == 0
    assert 20 < sum(t != texts[0] for t in client_metrics) < 120 and all(client_metrics)


# -- a federation ------------------------------------------------------------------------------------------------------


def test_a_round_of_all_three_kinds_and_its_bytes(toy_conf, federated):
    run = federated(toy_conf(*SMALL, MIX, "rounds=2"))
    assert not faults(run)
    first, _, last = (record["metrics"] for record in lines(run))
    assert {"client/accuracy/image", "client/accuracy/text", "client/rsum/pair", "server/rsum"} <= last.keys()
    assert first["bytes/encoders_down_per_client"] > first["bytes/encoders_whole"]  # whole, and names
    # (image 32 x 16 + 32, text 32 x 32 + 32) x 4 bytes; image client, text client, both: the projections alone
    values = 4 * (2 * (32 * 16 + 32) + 2 * (32 * 32 + 32)) / 3
    assert values < last["bytes/encoders_down_per_client"] < values + 1200
    assert 64 * 2 * 32 * 4 < last["bytes/features_down_per_client"] < 64 * 2 * 32 * 4 + 2500
    assert 64 * 4 / 3 * 32 * 4 < last["bytes/features_up_per_client"] < 64 * 4 / 3 * 32 * 4 + 2500


def test_a_resumed_run_equals_an_uninterrupted_one(toy_conf, resumed):
    whole, part = resumed(partial(toy_conf, *SMALL, MIX, "rounds=3"), "train")
    for a, b in zip(lines(whole), lines(part), strict=True):
        assert a["round"] == b["round"] and a["metrics"] == b["metrics"]


def test_a_client_with_another_public_set_is_named_with_both_hashes(toy_conf, federated, monkeypatch):
    from client_app.client import Client as Real

    whole = Real.public_pairs.fget
    monkeypatch.setattr(
        Real,
        "public_pairs",
        property(lambda self: whole(self).select(torch.arange(63, -1, -1)) if self.id == 1 else whole(self)),
    )
    run = federated(toy_conf(*SMALL, MIX))
    entries = faults(run)
    assert {e["client"] for e in entries} == {1} and "the public set of client 1 is" in entries[0]["fault"]
    assert "the server's is" in entries[0]["fault"]


def test_a_reply_that_misses_one_side_is_left_out(toy_conf, federated):
    def tamper(question, reply):
        kind = str(reply.content["header"]["kind"]) if reply.has_content() else ""
        if kind != "Features" or question.metadata.dst_node_id != 102:
            return reply
        body = codec.unpack(reply.content, Features)
        if not len(body.ids):
            return reply
        return Message(
            codec.pack(Features(body.ids, body.image, body.text[:, :0]), codec.header(reply.content)), reply_to=question
        )

    run = federated(toy_conf(*SMALL, MIX), tamper)
    (fault,) = faults(run)
    assert fault["client"] == 2 and "Features.text is 0 wide, expected 32" in fault["fault"]
    assert lines(run)[-1]["metrics"]["sed/clients_text"] == 1


def test_other_encoders_than_the_servers_are_refused_in_one_line(toy_conf, federated):
    with pytest.raises(FederationError, match="server's image encoder is no vit") as caught:
        federated(toy_conf(*SMALL, MIX, "method.client.architecture=vit+bert"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "preset", first(["released", "no_baa", "no_gff", "no_sed", "clean", "uniform", "frozen_linear"], 4)
)
def test_each_preset_runs(preset, toy_conf, federated):
    run = federated(toy_conf(f"experiment=fedafd_{preset}", *SMALL[1:], MIX))
    last = lines(run)[-1]["metrics"]
    assert not faults(run)
    conf = json.loads(json.dumps(composition.plain(composition.compose([f"experiment=fedafd_{preset}"]))))["method"]
    assert ("bytes/encoders_whole" in last) == (preset != "no_gff")
    assert ("train/adversarial" in last) == (preset not in ("no_baa", "frozen_linear"))
    assert ("server/kd_image" in last) == (preset not in ("no_sed", "frozen_linear"))
    released = [key for key, value in vars(Divergences()).items() if conf["server"]["divergences"][key] != value]
    assert len(released) == (7 if preset == "released" else 0)  # D1 D3 D4 D5 D7 D8 D9


@pytest.mark.parametrize(
    "override, line",
    [
        ("method.fusion=add", "fusion must be one of gff, global, none"),
        ("method.server.aggregator=median", "aggregator must be one of similarity, uniform"),
        ("method.divergences.generator_loss=gan", "generator_loss must be one of nonsat, minimax, grl"),
        ("method.client.adversarial=-1", "adversarial must lie between 0"),
        ("method.client.fusion_start=closed", "fusion_start must be one of even, random"),
        ("method.client.public_batches=0", "public_batches must lie between 1"),
        ("method.client.hidden=[0]", "hidden must lie between 1 and 1000000, got 0"),
    ],
)
def test_bad_settings_name_the_key(override, line, toy_conf):
    with pytest.raises(composition.SettingsError, match=line):
        preflight.validate(toy_conf(*SMALL, MIX, override))
