"""Mechanisms and accountants by hand, then differential privacy through the real apps."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from client_app.batches import ClientError
from client_app.memory import Memory
from client_app.privacy.dpsgd import fit_dpsgd, row_gradients
from client_app.privacy.protection import Protection, digest_of_question
from florilegium import preflight, seeds
from florilegium.config import composition
from florilegium.config.composition import SettingsError
from florilegium.config.instances import typed
from florilegium.config.privacy import PrivacySettings, Representations, Training, Votes
from florilegium.models import build
from florilegium.privacy import accountants, mechanisms
from florilegium.privacy.accountants import Accountant
from florilegium.privacy.mechanisms import PrivacyError, confident_gnmax
from florilegium.protocol import codec
from florilegium.protocol.codec import Header
from florilegium.protocol.payloads import Answers, Features, Logits, Nothing, Weights
from florilegium.protocol.validation import WireError
from tests.tiers import first
from tests.toy_federation import ToyClient

DELTA = 1e-5


def least(rdp_of_order):
    """The conversion of Balle et al. 2020 (Theorem 21), over the accountant's orders."""
    return min(
        rdp_of_order(a) + math.log1p(-1 / a) - (math.log(DELTA) + math.log(a)) / (a - 1) for a in accountants.ORDERS
    )


# -- accounting ----------------------------------------------------------------------------------------------------


def test_a_gaussian_costs_its_renyi_divergence():
    # order a costs a / (2 sigma^2); n times cost n times that
    assert Accountant().add(4.0).epsilon(DELTA) == pytest.approx(least(lambda a: a / 32), rel=1e-6)
    assert Accountant().add(4.0, 10).epsilon(DELTA) == pytest.approx(least(lambda a: 10 * a / 32), rel=1e-6)
    # one of sigma 4: at order 20 it is 0.625 + log(19/20) - (log(1e-5) + log 20) / 19 = 1.022
    assert Accountant().add(4.0).epsilon(DELTA) == pytest.approx(1.02, abs=0.01)


def test_a_row_and_a_whole_upload_of_representations():
    # noise sigma C against rows that differ by 2 C: sigma / 2. N rows: N a / (2 (sigma/2)^2) = 2 N a / sigma^2
    s = Representations(clip=3.0, noise=8.0)
    assert s.multiplier == 4.0
    assert Accountant().add(s.multiplier, 5).epsilon(DELTA) == pytest.approx(least(lambda a: 2 * 5 * a / 64), rel=1e-6)


def test_gnmax_costs_both_of_its_steps():
    # threshold of 7 samples: 7 a / (2 sigma_1^2); 4 answers: 4 a / sigma_2^2
    spent = accountants.votes_spent(Votes(threshold_noise=20, noise=10), 7, 4, Accountant())
    assert spent.epsilon(DELTA) == pytest.approx(least(lambda a: 7 * a / 800 + 4 * a / 100), rel=1e-6)
    nobody = accountants.votes_spent(Votes(threshold_noise=20, noise=10), 7, 0, Accountant())
    assert nobody.epsilon(DELTA) == pytest.approx(least(lambda a: 7 * a / 800), rel=1e-6)


def test_sampling_costs_less_and_everything_adds_up():
    all_rows, some = Accountant().add(1.0, 100), Accountant().add(1.0, 100, rate=0.1)
    assert some.epsilon(DELTA) < all_rows.epsilon(DELTA) / 5
    later = Accountant(json.loads(json.dumps(some.history))).add(1.0, 100, rate=0.1)
    assert later.history == [(1.0, 0.1, 200)] and later.epsilon(DELTA) > some.epsilon(DELTA)
    assert Accountant().epsilon(DELTA) == 0.0


# -- mechanisms ----------------------------------------------------------------------------------------------------


def test_rows_are_clipped_then_noised():
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    nearly = mechanisms.gaussian(x, Representations(clip=1.0, noise=1e-3), seeds.generator("a"))
    assert torch.allclose(nearly, torch.tensor([[0.6, 0.8], [0.3, 0.4]]), atol=0.01)  # 5 -> 1; 0.5 stays
    many = mechanisms.gaussian(torch.zeros(4000, 8), Representations(clip=2.0, noise=1.5), seeds.generator("b"))
    assert many.std().item() == pytest.approx(3.0, rel=0.02) and abs(many.mean().item()) < 0.05


def test_confident_gnmax_answers_where_enough_agree():
    votes = torch.tensor([[0, 1], [0, 2], [0, 1], [0, 3], [0, 1]])  # counts 5 and, of class 1, 3 of five
    silent = {"threshold_noise": 1e-3, "noise": 1e-3}
    label, answered = confident_gnmax(votes, 4, Votes(threshold=0.8, **silent), seeds.generator("c"))
    assert label.tolist() == [0, 1] and answered.tolist() == [True, False]
    prior = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 2.5]])  # 3 against 1 + 2.5
    label, answered = confident_gnmax(votes, 4, Votes(threshold=0.55, **silent), seeds.generator("c"), prior)
    assert label.tolist() == [0, 3] and answered.tolist() == [True, True]
    wide = torch.zeros(5, 3000, dtype=torch.int64)
    _, answered = confident_gnmax(wide, 4, Votes(threshold=1.0, threshold_noise=1.0, noise=1.0), seeds.generator("d"))
    assert answered.float().mean().item() == pytest.approx(0.5, abs=0.03)  # 5 + N(0, 1) >= 5


# -- at the client ---------------------------------------------------------------------------------------------------


def client(folder, round_=1, step=2, **given):
    privacy = typed(PrivacySettings, {"delta": DELTA, **given}, "privacy")
    return SimpleNamespace(
        conf=SimpleNamespace(privacy=privacy),
        id=3,
        width=2,
        memory=Memory(folder, round_, step),
        round=round_,
        seed=lambda *names: seeds.seed_of("client", 3, round_, *names),
    )


def answers(n=4):
    return Answers(
        torch.arange(n), torch.zeros(n, dtype=torch.int64), torch.ones(n), torch.ones(n, 2), torch.zeros(n, 0)
    )


def test_an_upload_is_noised_once_and_counted_over_rounds(tmp_path):
    noisy = {"representations": {"clip": 1.0, "noise": 2.0, "release": ["labels"]}}
    first = Protection(client(tmp_path, 1, **noisy))
    up, again = first.upload(answers()), Protection(client(tmp_path, 1, **noisy)).upload(answers())
    assert torch.equal(up.representations, again.representations)  # asked again: the same noise
    assert not torch.equal(up.representations, answers().representations) and torch.equal(up.labels, answers().labels)
    assert first.spent["gaussian"].history == [(1.0, 1.0, 4)]  # multiplier 2 / 2, four rows
    second = Protection(client(tmp_path, 2, **noisy))
    other = second.upload(answers())
    assert second.spent["gaussian"].history == [(1.0, 1.0, 8)] and not torch.equal(
        other.representations, up.representations
    )
    figures = second.figures()
    assert figures["gaussian"] == pytest.approx(least(lambda a: 8 * a / 2), rel=1e-6)
    assert figures["gaussian_row"] == pytest.approx(least(lambda a: a / 2), rel=1e-6)


def test_the_noise_cannot_be_named_by_the_settings(tmp_path):
    given = {"representations": {"clip": 1.0, "noise": 1.0, "release": ["labels"]}}
    one, two = (Protection(client(tmp_path / str(n), **given)).upload(answers()).representations for n in range(2))
    assert not torch.equal(one, two)  # same settings, another machine's secret
    one, two = (
        Protection(client(tmp_path / f"s{n}", **given, seeded=True)).upload(answers()).representations for n in range(2)
    )
    assert torch.equal(one, two)


def test_noisy_features_are_unit_vectors_again_and_weights_are_refused(tmp_path):
    given = {"representations": {"clip": 1.0, "noise": 3.0}}
    up = Protection(client(tmp_path, **given)).upload(Features(torch.arange(5), torch.zeros(5, 0), torch.ones(5, 4)))
    assert torch.allclose(up.text.split(2, 1)[1].norm(dim=1), torch.ones(5))  # both layers of two
    assert up.image.shape == (5, 0)
    scores = Protection(client(tmp_path, **given)).upload(Logits(torch.arange(2), torch.ones(2, 3)))
    assert scores.logits.std() > 0.5
    with pytest.raises(PrivacyError, match="representations does not cover Weights.tensors .weights of a model."):
        Protection(client(tmp_path, **given)).upload(Weights({"w": torch.ones(1)}, 3))


def test_epsilons_travel_beside_any_payload_and_are_checked():
    header = Header("method", 1, 2)
    assert codec.spent(codec.pack(Nothing(), header)) == {}
    record = codec.pack(Nothing(), header, {"dpsgd": 2.5})
    assert codec.spent(record) == {"dpsgd": 2.5} and codec.unpack(record) == Nothing()
    for bad, line in (
        ({"telepathy": 1.0}, "is no mechanism"),
        ({"dpsgd": -1.0}, "not a finite number from 0"),
        ({"dpsgd": math.nan}, "not a finite number"),
    ):
        with pytest.raises(WireError, match=line):
            codec.spent(codec.pack(Nothing(), header, bad))


def test_another_question_for_the_same_round_has_noise_of_its_own(tmp_path):
    # clip 10 changes no row of [1, 1], so an upload minus its rows is the noise
    given = {"representations": {"clip": 10.0, "noise": 2.0, "release": ["labels"]}}

    def noise(asked, rows):
        protection = Protection(client(tmp_path, **given))
        protection.asked = asked
        return protection.noised(Logits(torch.arange(4), rows)).logits - rows

    first = noise("question", torch.ones(4, 2))
    assert torch.equal(noise("question", torch.ones(4, 2)), first)
    assert not torch.allclose(noise("other samples", torch.ones(4, 2)), first, atol=1e-3)
    assert not torch.allclose(noise("question", 2 * torch.ones(4, 2)), first, atol=1e-3)  # of another model


def test_the_account_is_not_rewound(tmp_path):
    given = {"representations": {"clip": 1.0, "noise": 8.0, "release": ["labels"]}}

    def asked(round_, question):
        one = client(tmp_path, round_, **given)
        one.memory.begin()  # as every message does
        protection = Protection(one)
        protection.asked = question
        protection.upload(answers())
        return protection.spent["gaussian"].history, protection.figures()["gaussian"]

    for r in range(5):
        assert asked(r, "first run")[0] == [(4.0, 1.0, 4 * (r + 1))]
    assert asked(4, "first run")[0] == [(4.0, 1.0, 20)]  # a resumed round pays once
    history, epsilon = asked(0, "second run")  # four rows more, whichever round it is called
    assert history == [(4.0, 1.0, 24)] and epsilon == pytest.approx(least(lambda a: 24 * a / 32), rel=1e-6)


def test_an_account_by_round_is_taken_over_and_an_unreadable_one_is_no_account(tmp_path):
    given = {"representations": {"clip": 1.0, "noise": 8.0, "release": ["labels"]}}
    Memory(tmp_path, 1, 1).write("privacy", {"round": torch.tensor([1])}, {"gaussian": [[4.0, 1.0, 4]]})
    later = Protection(client(tmp_path, 2, **given))
    later.upload(answers())
    assert later.spent["gaussian"].history == [(4.0, 1.0, 8)]
    (tmp_path / "privacy.safetensors").write_bytes(b"torn")
    with pytest.raises(PrivacyError, match="the account of what was spent cannot be read"):
        Protection(client(tmp_path, 3, **given)).upload(answers())


def test_the_question_is_the_message_and_the_settings_that_stay(toy_conf):
    def digest(content, *overrides):
        conf = toy_conf("privacy=dpsgd", *overrides)
        return digest_of_question(conf, conf.method.client, content)

    asked = digest("a")
    assert digest("a", "rounds=9", "out=/elsewhere", "clients.threads=2", "log_level=debug") == asked
    others = [
        digest("b"),
        digest("a", "seed=1"),
        digest("a", "privacy.training.clip=2"),
        digest("a", "method.client.batch=7"),
    ]
    assert len({asked, *others}) == 5


def test_a_digest_of_a_message_is_of_its_content_alone():
    header = Header("method", 1, 2)

    def digest(value, at=header):
        return codec.digest(codec.pack(Weights({"a": torch.tensor([value, 2.0]), "b": torch.ones(1)}, 3), at))

    assert digest(1.0) == digest(1.0)
    assert len({digest(1.0), digest(1.5), digest(1.0, Header("method", 1, 3))}) == 3


# -- DP-SGD ------------------------------------------------------------------------------------------------------------


def trainee(folder, training, **more):
    toy = ToyClient(0, folder, **more)
    toy.conf = SimpleNamespace(
        seed=0,
        clients=SimpleNamespace(mix=[]),
        privacy=typed(PrivacySettings, {"training": training, "seeded": True}, "privacy"),
    )
    toy.rows_as_inputs = lambda rows, chosen, random=None: rows.x[chosen]
    toy.protection = Protection(toy)
    return toy


def test_one_step_by_hand(tmp_path):
    # every row sampled (batch = rows), no noise to speak of: the step is lr times the mean of the clipped gradients
    toy = trainee(tmp_path, {"noise": 1e-3, "clip": 0.05}, examples=6)
    before = {n: p.detach().clone() for n, p in toy.model.named_parameters()}
    single = []
    for x, y in zip(toy.x, toy.labels, strict=True):
        toy.model.zero_grad()
        cross_entropy(toy.model(x[None]), y[None]).backward()
        whole = torch.cat([p.grad.flatten() for p in toy.model.parameters()])
        assert whole.norm() > 0.05
        single.append(whole * 0.05 / (whole.norm() + 1e-6))
    expected = torch.stack(single).mean(0)
    toy.model.zero_grad()
    out = fit_dpsgd(toy, torch.optim.SGD(toy.model.parameters(), lr=1.0), 6, 1, "private")
    moved = torch.cat([(before[n] - p.detach()).flatten() for n, p in toy.model.named_parameters()])
    assert out == {"steps": 1.0} and torch.allclose(moved, expected, atol=2e-4)
    assert toy.protection.spent["dpsgd"].history == [(1e-3, 1.0, 1)]


def test_training_from_other_weights_has_noise_of_its_own(tmp_path):
    # one step of lr 1 over 6 rows: the clipped mean gradient is at most 1 long, the noise about 1000 / 6 a coordinate
    def moved(shift):
        toy = trainee(tmp_path, {"noise": 1000.0, "clip": 1.0}, examples=6)
        toy.conf.privacy.seeded = False
        with torch.no_grad():
            for p in toy.model.parameters():
                p += shift
        before = torch.cat([p.detach().flatten().clone() for p in toy.model.parameters()])
        fit_dpsgd(toy, torch.optim.SGD(toy.model.parameters(), lr=1.0), 6, 1, "private")
        return torch.cat([p.detach().flatten() for p in toy.model.parameters()]) - before

    first = moved(0.0)
    assert torch.equal(moved(0.0), first) and first.norm() > 100
    assert (moved(0.1) - first).norm() > 100  # with equal noise it is the difference of two gradients: at most 2


def test_steps_and_rate_are_those_of_poisson_batches(tmp_path):
    toy = trainee(tmp_path, {"noise": 2.0, "clip": 1.0}, examples=16)
    out = fit_dpsgd(toy, torch.optim.AdamW(toy.model.parameters(), lr=1e-3), 4, 3, "private")
    assert out == {"steps": 12.0} and toy.protection.spent["dpsgd"].history == [(2.0, 0.25, 12)]
    tiny = trainee(tmp_path / "tiny", {"noise": 2.0, "clip": 1.0}, examples=40)
    assert fit_dpsgd(tiny, torch.optim.SGD(tiny.model.parameters(), lr=0.1), 1, 1, "p") == {"steps": 40.0}  # some empty


@pytest.mark.parametrize("modality, name", [(m, n) for m, names in build.ARCHITECTURES.items() for n in names])
def test_gradients_of_single_rows_of_every_architecture(modality, name):
    from florilegium.privacy.mechanisms import without_batch_norm

    conf = composition.compose(["data=toy", "clients=toy", "diffusion=mini"]).clients
    vocabulary = None if modality == "image" else build.vocabulary(conf, name)
    with seeds.scoped("architectures"):
        model = without_batch_norm(build.build(conf, modality, name, 4, vocabulary)).eval()
        x = torch.randn(3, 3, 16, 16) if modality == "image" else torch.randint(1, 5, (3, 8))
    if modality == "text":
        x[1, 5:] = model.body.pad
    labels = torch.tensor([0, 1, 3])
    found = row_gradients(model, x, labels)
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())
    for b in range(3):
        model.zero_grad()
        cross_entropy(model(x[b : b + 1]), labels[b : b + 1]).backward()
        for parameter_name, p in model.named_parameters():
            expected = torch.zeros_like(p) if p.grad is None else p.grad
            assert torch.allclose(found[parameter_name][b], expected, atol=1e-3), parameter_name


def test_a_model_whose_rows_mix_is_refused_by_name():
    with pytest.raises(PrivacyError, match="DP-SGD cannot take the gradients of single rows of Sequential"):
        row_gradients(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), torch.ones(4, 2), torch.zeros(4).long())


# -- settings, and the whole federation ----------------------------------------------------------------------------


def small(toy_conf, *overrides):
    return toy_conf(
        "method.server.samples=16",
        "method.client.pretrain_epochs=1",
        "method.client.distill_epochs=1",
        "method.server.tune_t2i=false",
        "evaluation.images_per_class=1",
        *overrides,
    )


@pytest.mark.parametrize(
    "overrides, line",
    [
        (
            [
                "method=fedavg",
                "clients.mix=[{modality: image, model: vit}, {modality: image, model: vit}]",
                "privacy=gnmax",
            ],
            "privacy.votes: fedavg counts no votes",
        ),
        (
            [
                "method=fednh",
                "clients.mix=[{modality: image, model: vit}, {modality: image, model: vit}]",
                "privacy=dpsgd",
            ],
            "privacy.training: fednh reads private rows in ways of its own",
        ),
        (
            [
                "method=fedavg",
                "clients.mix=[{modality: image, model: vit}, {modality: image, model: vit}]",
                "privacy=gaussian",
            ],
            "privacy.representations does not cover Weights.tensors .* .fedavg, method.",
        ),
        (
            ["privacy=gaussian", "privacy.representations.noise=0"],
            "privacy.representations: noise must lie between 0.001",
        ),
        (["privacy=dpsgd", "+privacy.training.sigma=2"], "privacy.training.sigma"),
        (["privacy=dpsgd", "clients.precision=bfloat16"], "clients.precision: DP-SGD clips"),
    ],
)
def test_bad_settings_give_one_line(overrides, line, toy_conf):
    with pytest.raises(SettingsError, match=line):
        preflight.validate(toy_conf(*overrides))


def lines(run):
    return [json.loads(line)["metrics"] for line in (run / "rounds.jsonl").read_text().splitlines()]


def test_a_fedmmkt_round_under_all_three(toy_conf, federated):
    rounds = lines(
        federated(small(toy_conf, "privacy=[gaussian,gnmax,dpsgd]", "privacy.representations.noise=20", "rounds=2"))
    )
    for name in ("gaussian", "gnmax", "dpsgd"):
        key = f"privacy/epsilon/{name}"
        assert 0 < rounds[1][key] < rounds[2][key] < math.inf
    assert rounds[2]["privacy/epsilon/dpsgd"] == max(rounds[2][f"privacy/epsilon/dpsgd/{k}"] for k in range(4))
    # two rounds of 16 rows at multiplier 20 / 2
    assert rounds[2]["privacy/epsilon/gaussian"] == pytest.approx(least(lambda a: 32 * a / 200), rel=1e-5)
    assert rounds[0]["privacy/epsilon/dpsgd"] > 0 and "privacy/epsilon/gaussian" not in rounds[0]
    assert not any(name.startswith("distill/private") for name in rounds[2])  # public samples only


def test_fedavg_of_resnets_has_group_norm_under_dpsgd(toy_conf, federated):
    mix = "clients.mix=[{modality: image, model: resnet}, {modality: image, model: resnet}]"
    run = federated(toy_conf("method=fedavg", mix, "privacy=dpsgd", "method.client.local_epochs=1"))
    assert lines(run)[1]["privacy/epsilon/dpsgd"] > 0 and "train/steps" in lines(run)[1]
    assert "train/task" not in lines(run)[1]


@pytest.mark.parametrize("method", first(["fednova", "flower", "fedmd", "creamfl", "fedmekt", "standalone"], 3))
def test_the_other_methods_it_covers(method, toy_conf, federated):
    images = ["clients.mix=[{modality: image, model: vit}, {modality: image, model: vit}]"]
    public = ["method.server.public.samples=8", "method.client.pretrain_epochs=1"]
    given = {"fednova": images, "flower": images, "standalone": ["method.client.pretrain_epochs=1"]}.get(method, public)
    last = lines(federated(toy_conf(f"method={method}", "privacy=dpsgd", "privacy.training.noise=2", *given)))[-1]
    assert 0 < last["privacy/epsilon/dpsgd"] < math.inf and 0 <= last["client/accuracy"] <= 1


def test_other_passes_over_private_rows_are_not_made(toy_conf, tmp_path):
    from client_app.opening import open_client

    conf = small(toy_conf, "privacy=dpsgd")
    one = open_client(conf, {"partition-id": 0, "num-partitions": 4}, Header("method", 1, 1))
    with pytest.raises(ClientError, match="not DP-SGD's"):
        next(one.private_batches(4, 0, "private"))
    assert one.protection.settings.training == Training(1.0, 1.0)
