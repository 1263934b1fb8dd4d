"""Privacy fails closed: what no mechanism covers is refused by name, also a payload that nobody thought of."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from client_app.memory import Memory
from client_app.privacy.protection import Protection
from florilegium import catalogue, preflight, seeds
from florilegium.config.composition import SettingsError, compose
from florilegium.config.privacy import DefenceSettings, PrivacySettings, Representations, Training, Votes
from florilegium.federation.federation import Client, Federation
from florilegium.federation.guard import Guard
from florilegium.privacy import coverage, listing
from florilegium.privacy.mechanisms import PrivacyError
from florilegium.protocol import payloads
from florilegium.protocol.fields import (
    COUNT,
    DERIVED,
    HOLDS,
    PUBLIC,
    DeclarationError,
    array,
    holds,
    plain,
    sample_ids,
    vectors,
)
from florilegium.protocol.payloads import Answers, Features, Nothing, Report, Targets, payload
from tests.test_every_method import faults, toy

MECHANISMS = {"representations": Representations, "training": Training}
FOUR = ["method.server.samples=8", "method.client.pretrain_epochs=1", "rounds=1"]


@pytest.fixture
def impression() -> Iterator[type]:
    """A payload that nobody thought of, registered for one test."""

    @payload
    class Impression:
        carries: ClassVar[str] = "a client's impression of samples"
        ids: Tensor = sample_ids()
        mood: Tensor = array("float32", "N", holds=DERIVED)
        vectors: Tensor = vectors("N", "D")

    yield Impression
    payloads._payloads.pop("Impression")


def filled(kind):
    return kind(torch.arange(2), torch.ones(2), torch.ones(2, 2))


def protection(folder, **given):
    """A client's, by mechanism: {"representations": {...}}."""
    made = {name: MECHANISMS[name](**values) for name, values in given.items()}
    client = SimpleNamespace(
        conf=SimpleNamespace(privacy=PrivacySettings(seeded=True, **made)),
        id=0,
        round=1,
        width=2,
        memory=Memory(folder, 1, 1),
        seed=lambda *names: seeds.seed_of("client", *names),
    )
    return Protection(client)


# -- declarations ------------------------------------------------------------------------------------------------------


def test_every_field_of_every_payload_says_what_it_holds():
    found = {holds(kind, f) for kind in payloads.PAYLOADS.values() for f in fields(kind)}
    assert found == set(HOLDS)  # and every kind is in use


def test_a_field_without_a_declaration_is_no_payload():
    with pytest.raises(DeclarationError, match="Silent.mood does not say what it holds"):

        @payload
        class Silent:
            carries: ClassVar[str] = "something"
            mood: int

    with pytest.raises(DeclarationError, match="Wordless does not say what it carries"):

        @payload
        class Wordless:
            count: int = plain(COUNT)

    with pytest.raises(DeclarationError, match="there is a payload Report already"):
        payload(type("Report", (), {"carries": "something else"}))
    with pytest.raises(DeclarationError, match="a field holds one of public, .*, not 'secret'"):
        plain("secret")
    with pytest.raises(DeclarationError, match="vectors are rows of float32, not int64 over N x D"):
        array("int64", "N", "D", holds="vector")
    assert not {"Silent", "Wordless"} & set(payloads.PAYLOADS) and payloads.PAYLOADS["Report"] is Report


# -- a payload that nobody thought of ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mechanism, given",
    [
        ("privacy.representations", {"representations": {"clip": 1.0, "noise": 1.0}}),
        ("privacy.representations", {"representations": {"release": ["labels", "figures"]}}),
        ("privacy.training", {"training": {"noise": 1.0, "clip": 1.0}}),
    ],
)
def test_the_client_refuses_it_under_each_mechanism(mechanism, given, impression, tmp_path):
    assert protection(tmp_path).upload(filled(impression)).mood.tolist() == [1, 1]  # nothing is asked for
    guarded = protection(tmp_path, **given)
    with pytest.raises(PrivacyError, match=f"{mechanism} does not cover Impression.mood .something else"):
        guarded.upload(filled(impression))
    assert guarded.spent == {}  # no noise was drawn for what stays


def test_its_vectors_alone_would_have_had_noise(impression, tmp_path):
    up = impression(torch.arange(2), torch.zeros(0), torch.ones(2, 2))
    sent = protection(tmp_path, representations={"clip": 1.0, "noise": 1.0})
    assert not torch.equal(sent.upload(up).vectors, up.vectors)
    assert sent.spent["gaussian"].history == [(0.5, 1.0, 2)]  # noise 1 over a sensitivity of 2; two rows


def asking(guard):
    """A federation of one node that must never be asked."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

    class Silent:
        def get_node_ids(self):
            return [11]

        def pull_messages(self, names):
            return []

        def push_messages(self, messages):
            raise AssertionError("a message left")

    met = Federation(Silent(), timeout=0.1)
    met.clients = met.cohort = [Client(11, 0, "image", "vit")]
    met.guard = guard
    return met


def test_the_server_does_not_send_it_under_votes(impression):
    guard = Guard(None, PrivacySettings(votes=Votes()), classes=3)
    with pytest.raises(PrivacyError, match="privacy.votes does not cover Impression.mood, Impression.vectors"):
        asking(guard).send("distill", filled(impression))
    released = Guard(None, PrivacySettings(votes=Votes(release=["vectors"])), classes=3)
    with pytest.raises(PrivacyError, match="privacy.votes does not cover Impression.mood .something else"):
        asking(released).send("distill", filled(impression))


@pytest.mark.parametrize(
    "defence",
    [
        DefenceSettings(bound=0.3),
        DefenceSettings(centre="trimmed"),
        DefenceSettings(centre="median"),
        DefenceSettings(reputation=True),
    ],
)
def test_no_client_is_asked_for_it_under_each_defence(defence, impression):
    with pytest.raises(PrivacyError, match="defence does not cover Impression.mood"):
        asking(Guard(defence, classes=3)).send("represent", Nothing(), impression)
    with pytest.raises(AssertionError, match="a message left"):
        asking(Guard(classes=3)).send("represent", Nothing(), impression)


def test_a_dataclass_without_any_declaration_is_refused_too(tmp_path):
    @dataclass(frozen=True)
    class Smuggled:
        rows: Tensor

    for given in ({"representations": {"noise": 1.0}}, {"training": {"noise": 1.0}}):
        with pytest.raises(PrivacyError, match="Smuggled.rows does not say what it holds"):
            protection(tmp_path, **given).upload(Smuggled(torch.ones(1)))
    with pytest.raises(PrivacyError, match=r"Smuggled.rows does not say"):
        Guard(None, PrivacySettings(votes=Votes())).may_send(Smuggled(torch.ones(1)))
    with pytest.raises(PrivacyError, match=r"Smuggled.rows does not say"):
        Guard(DefenceSettings(bound=0.3)).may_ask([Smuggled])


def test_through_the_real_apps_it_does_not_leave(impression, toy_conf, federated, monkeypatch):
    """A half that declares and sends it: the preflight would refuse it, and so does the client that never ran it."""
    Half = catalogue.side("fedmd", "client")

    def represent(self, client, samples: payloads.Samples) -> payloads.Logits:
        return impression(samples.ids, torch.ones(len(samples.ids)), torch.ones(len(samples.ids), 2))

    represent.__annotations__ = {"samples": payloads.Samples, "return": impression}
    monkeypatch.setattr(Half, "represent", represent)
    conf = toy(toy_conf, "fedmd", "privacy=gaussian", "rounds=1")
    with pytest.raises(SettingsError, match="privacy.representations does not cover Impression.mood .*fedmd, method"):
        preflight.validate(conf)
    seen = []

    def watch(question, reply):
        seen.append(reply.error.reason if reply.has_error() else str(reply.content["header"]["kind"]))
        return reply

    monkeypatch.setattr(preflight, "check_guard", lambda conf: None)
    with pytest.raises(RuntimeError, match="does not cover Impression.mood"):
        federated(conf, watch)
    assert "Impression" not in seen


# -- labels, figures, and what goes down -------------------------------------------------------------------------------


def answers():
    return Answers(torch.arange(2), torch.tensor([0, 1]), torch.ones(2), torch.ones(2, 2), torch.zeros(2, 0))


def test_labels_leave_beside_noise_only_where_the_settings_say_so(tmp_path):
    line = "does not cover Answers.labels, Answers.confidence .classes .*release=...., ?labels"
    with pytest.raises(PrivacyError, match=line):
        protection(tmp_path, representations={"noise": 1.0}).upload(answers())
    up = protection(tmp_path, representations={"noise": 1.0, "release": ["labels"]}).upload(answers())
    assert up.labels.tolist() == [0, 1] and not torch.equal(up.representations, answers().representations)
    both = protection(tmp_path, representations={"noise": 1.0}, training={"noise": 1.0}).upload(answers())
    assert both.labels.tolist() == [0, 1]  # labels of a model that DP-SGD trained


def test_figures_stay_where_the_settings_do_not_release_them(tmp_path):
    report = Report({"loss": 0.25}, 4)
    assert protection(tmp_path).upload(report) is report
    assert protection(tmp_path, representations={"noise": 1.0}).upload(report).metrics == {"loss": 0.25}
    kept = protection(tmp_path, representations={"noise": 1.0, "release": []}).upload(report)
    assert kept == Report({}, 4)
    with pytest.raises(ValueError, match="release must be one of figures, labels, got 'rows'"):
        Representations(release=["rows"])


def test_empty_fields_hold_nothing():
    given = PrivacySettings(votes=Votes())
    labels_only = Targets(torch.arange(2), torch.tensor([0, 1]), torch.zeros(2, 0))
    assert coverage.refused_download(labels_only, given) is None
    fused = Targets(torch.arange(2), torch.tensor([0, 1]), torch.ones(2, 3))
    assert "Targets.representations" in coverage.refused_download(fused, given)
    assert "Targets.representations" in coverage.refused_download(Targets, given)
    assert coverage.refused_download(Targets, given, {"Targets.representations"}) is None
    assert "Targets.representations" in coverage.refused_download(fused, given, {"Targets.representations"})
    for other in ({"representations": Representations()}, {"training": Training()}):
        assert coverage.refused_download(fused, PrivacySettings(votes=Votes(), **other)) is None


def test_what_is_never_private_passes_everything():
    everything = PrivacySettings(representations=Representations(), votes=Votes())
    for kind in (Nothing, payloads.Profile, payloads.Samples, payloads.PublicSet, Features):
        assert coverage.refused_upload(kind, everything) is None and coverage.undefended(kind) is None


# -- settings, listing and records -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, line",
    [
        (["privacy=gaussian"], "privacy.representations does not cover Answers.labels, Answers.confidence"),
        (["privacy=gnmax"], "privacy.votes does not cover Targets.representations .* .fedmmkt, method."),
        (["method=creamfl", "method.public_set=synthetic", "privacy=gaussian"], "does not cover Answers.labels"),
        (["method=fedafd", "privacy=gnmax"], "fedafd counts no votes of clients; these do: fedmmkt"),
    ],
)
def test_the_preflight_refuses_what_would_leave_uncovered(overrides, line, toy_conf):
    with pytest.raises(SettingsError, match=line):
        preflight.validate(toy_conf(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["privacy=gaussian", "method.variant=logit"],
        ["privacy=gaussian", "privacy.representations.release=[labels]"],
        ["privacy=gnmax", "method.server.client_representations=false"],
        ["privacy=gnmax", "privacy.votes.release=[vectors]"],
        ["privacy=[gnmax,dpsgd]"],
        ["method=creamfl", "privacy=gaussian"],
    ],
)
def test_the_preflight_lets_pass_what_is_covered_or_released(overrides, toy_conf):
    preflight.validate(toy_conf(*overrides))


@pytest.mark.parametrize("defence", ["bounded", "trimmed", "median", "reputation", "all"])
def test_a_defence_is_not_asked_for_where_it_would_do_nothing(defence, toy_conf):
    mix = "clients.mix=[{modality: image, model: vit}, {modality: image, model: vit}]"
    with pytest.raises(SettingsError, match="defence does not cover Weights.tensors .*method=flower"):
        preflight.validate(toy_conf("method=fedavg", mix, f"defence={defence}"))


def test_listing_and_records_say_that_labels_leave_without_noise(toy_conf, federated):
    refused = listing.listing(toy(toy_conf, "fedmmkt", "privacy=gaussian")).notes
    assert any(note.startswith("REFUSED, nothing is sent: privacy.representations") for note in refused)
    conf = toy(toy_conf, "fedmmkt", *FOUR, "privacy=gaussian", "privacy.representations.release=[figures,labels]")
    (note,) = [note for note in listing.listing(conf).notes if note.startswith("WITHOUT NOISE")]
    assert "Answers.labels, Answers.confidence" in note and "Report.metrics" in note
    assert "Answers.representations" not in note
    run = federated(conf)
    assert not faults(run)
    last = json.loads((run / "rounds.jsonl").read_text().splitlines()[-1])["metrics"]
    assert last["privacy/without_noise/labels"] == last["privacy/without_noise/figures"] == 1.0
    assert last["privacy/epsilon/gaussian"] > 0


def test_without_privacy_nothing_is_said_of_noise():
    assert not any("NOISE" in note for note in listing.listing(compose(["method=fedmd"])).notes)
    assert PUBLIC in {f.holds for f in listing.listing(compose(["method=fedmd"])).fields}
