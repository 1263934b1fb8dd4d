"""The privacy listing is complete: what travels in a run of every method is listed, and all listed is the wire's."""

import json
from dataclasses import fields

import pytest
from flwr.app import MetricRecord

from florilegium.catalogue import CATALOGUE, side
from florilegium.cli import main, privacy
from florilegium.config import composition
from florilegium.privacy import listing
from florilegium.protocol import codec, payloads
from florilegium.protocol import phases as phases
from florilegium.protocol.budget import Budget
from florilegium.protocol.payloads import Answers, Examples, Logits, Nothing, Report, Samples, Weights
from florilegium.protocol.validation import WireError
from tests.field.inputs import put
from tests.test_every_method import ALIKE, faults, toy

SPOKEN = [name for name in CATALOGUE if side(name, "client")]
PHASE = {message_type: phase for phase, message_type in phases.PHASES.items()}
SERVER_LOOKS = [
    "guidance@method.client.guidance=feddifrc",
    "method.client.guidance.allow_upload=true",
    "method.client.guidance.feddifrc.location=server",
]


def travelled(message):
    """(kind, {field: bytes of its arrays}) of a message."""
    record = message.content
    names = {f"{name}": len(a.data) for name, a in record["arrays"].items() if not name.endswith(".lengths")}
    names |= dict.fromkeys(record["scalars"], 0)
    names |= {"tensors": sum(len(a.data) for a in record["tensors"].values())} if "tensors" in record else {}
    return str(record["header"]["kind"]), names | ({"metrics": 0} if "metrics" in record else {}), record["header"]


@pytest.mark.parametrize(
    "method, overrides",
    [
        *((m, []) for m in SPOKEN),
        ("fedavg", SERVER_LOOKS),
        ("fedmmkt", ["method.variant=logit"]),
        ("fedmmkt", ["method.server.exchanges=joined"]),
    ],
)
def test_what_travels_is_what_is_listed(method, overrides, toy_conf, federated):
    conf = toy(toy_conf, method, "rounds=1", *overrides)
    found = listing.listing(conf)
    listed = {(f.phase, f.way, f.payload, f.name): f for f in found.fields}
    seen = set()

    def watch(question, reply):
        for way, message in (("down", question), ("up", reply)):
            kind, names, header = travelled(message)
            assert set(header) == {"kind", *(name for _, _, payload, name in listed if payload == "Header")}
            assert all(("every", way, "budget", name) in listed for name in message.content.get("budget", ()))
            for name, size in (names or {"-": 0}).items():
                where = (PHASE[question.metadata.message_type], way, kind, name)
                assert where in listed, f"{method} sent {where}"
                seen.add(where[:3])
                field = listed[where]
                if field.size is not None and field.kind != "state dict" and size:
                    assert size - 128 <= field.size, f"{where}: {size} bytes, listed {field.size}"  # NumPy's header
        return reply

    run = federated(conf, watch)
    assert not faults(run) and {way for _, way, _ in seen} == {"up", "down"}
    for f in found.fields:
        known = {**payloads.PAYLOADS, "Header": codec.Header, "budget": Budget}[f.payload]
        assert f.phase in {*phases.PHASES, "every"} and f.name in {"-", *(field.name for field in fields(known))}
    raw = any("RAW PRIVATE DATA" in note for note in found.notes)
    assert raw == any(kind == "Examples" for *_, kind in seen) == (overrides == SERVER_LOOKS)


def test_the_sizes_are_those_of_the_settings(toy_conf):
    conf = toy(toy_conf, "fedmmkt")  # N = 12 samples, D = 32 wide, C = 4 classes
    found = {(f.way, f.payload, f.name): f.size for f in listing.listing(conf).fields}
    assert found["up", "Answers", "representations"] == 12 * 32 * 4 and ("up", "Logits", "logits") not in found
    logits = listing.listing(toy(toy_conf, "fedmmkt", "method.variant=logit")).fields
    assert {(f.way, f.payload, f.name): f.size for f in logits}["up", "Logits", "logits"] == 12 * 4 * 4
    assert found["down", "Targets", "labels"] == 12 * 8 and found["down", "Samples", "images"] is None


def test_the_weights_are_the_models(toy_conf, federated):
    conf = toy(toy_conf, "fedavg")
    listed = {(f.phase, f.way, f.name): f for f in listing.listing(conf).fields}
    sizes = []

    def watch(question, reply):
        if question.metadata.message_type == "train":
            sizes.append(sum(len(a.data) - 128 for a in reply.content["tensors"].values()))  # less NumPy's header
        return reply

    federated(conf, watch)
    assert set(sizes) == {listed["train", "up", "tensors"].size}


def test_a_signature_must_say_what_crosses():
    class Silent:
        def train(self, client, down):
            return Nothing()

    class Free:
        def train(self, client, down: Nothing) -> dict:
            return {}

    for Half in (Silent, Free):
        with pytest.raises(ValueError, match="the signature of 'train'"):
            phases.declared(Half, "train")
    assert phases.declared(side("fedmmkt", "client"), "represent") == ((Samples,), (Answers, Logits))


def test_what_settings_switch_off_is_not_listed(toy_conf):
    Half, plain = side("fedavg", "client"), toy(toy_conf, "fedavg")
    off = composition.typed(Half.Settings, plain.method.client, "method.client")
    assert phases.declared(Half, "represent", off) == ((), ())
    on = composition.typed(Half.Settings, toy(toy_conf, "fedavg", *SERVER_LOOKS).method.client, "method.client")
    assert Examples in phases.declared(Half, "represent", on)[1]
    assert Weights in phases.declared(Half, "evaluate", off)[0]
    assert phases.declared(side("fedmmkt", "client"), "evaluate") == ((Nothing,), (Report,))


def test_a_client_sends_nothing_that_its_half_does_not_declare(toy_conf, federated, monkeypatch):
    Half = side("fedavg", "client")
    honest = Half.train

    def leaking(self, client, down: Weights) -> Weights:
        honest(self, client, down)
        rows = client.data.train
        return Examples(rows.ids, rows.labels, tuple(b"" for _ in rows.ids))

    monkeypatch.setattr(Half, "train", leaking)
    with pytest.raises(RuntimeError, match="gave Examples, which it does not declare"):
        federated(toy(toy_conf, "fedavg", "timeouts.quorum=1"))


@pytest.mark.parametrize("way", privacy.FORMATS)
def test_the_command_prints_every_field(way, toy_conf, capsys, tiny_overrides):
    given = ["privacy", "fedavg", "data=toy", "clients=toy", *ALIKE, *tiny_overrides, "--format", way]
    options = main.parse(given)
    options.command(options)
    out = capsys.readouterr().out
    assert all(word in out for word in ("train", "tensors", "SecAgg+", "dict[str, float]"))
    if way == "json":
        payloads = {f["payload"] for f in json.loads(out)["fields"]}
        assert payloads == {"Header", "Nothing", "Profile", "SiteProfile", "Weights", "Report", "budget"}


def test_the_command_lists_a_run_on_own_data(tmp_path, capsys, tiny_overrides):
    """Its sizes are those of the classes that the data name, as in the run."""
    for k, name in enumerate(("mole", "newt", "red kite")):
        put(tmp_path / "My photos (1)" / name / "0.png", k)
    models = [given for given in tiny_overrides if "judge" not in given]
    own = ["data=folder", f"data.path={tmp_path / 'My photos (1)'}", "data.image_size=16"]
    options = main.parse(["privacy", "fedproto", *own, "clients=toy", *models])
    options.command(options)
    assert "C = 3" in capsys.readouterr().out and [path.name for path in tmp_path.iterdir()] == ["My photos (1)"]
    options = main.parse(["privacy", "fedavg", "data=folder"])
    with pytest.raises(options.errors, match="data.path is not set"):
        options.command(options)


def test_a_method_that_asks_no_client_says_so():
    assert "nothing is sent" in listing.listing(composition.compose(["method=selftuned"])).notes[0]
    options = main.parse(["privacy", "fedx"])
    with pytest.raises(options.errors, match="method 'fedx'"):
        options.command(options)


def test_own_words_for_every_payload():
    assert all(isinstance(cls.carries, str) and cls.carries for cls in payloads.PAYLOADS.values())


def test_the_privacy_that_clients_report_is_listed(toy_conf, federated):
    conf, seen = toy(toy_conf, "fedmmkt", "rounds=1", "privacy=gaussian", "method.variant=logit"), set()
    listed = {f.name for f in listing.listing(conf).fields if f.payload == "privacy"}

    def watch(question, reply):
        seen.update(reply.content.get("privacy", ()))
        return reply

    assert not faults(federated(conf, watch)) and seen == listed == {"gaussian", "gaussian_row"}


def test_what_a_client_trained_on_is_listed_and_counted(toy_conf, federated):
    """Two clients, one pre-training epoch, then one epoch and one pass over 12 samples a round: by hand."""
    given = ["method.server.public.samples=12", "method.client.pretrain_epochs=1", "method.client.local_epochs=1"]
    conf = toy(toy_conf, "fedet", *given, "method.client.distill_epochs=1", "method.client.mix_private=false")
    listed = {f.name for f in listing.listing(conf).fields if f.payload == "budget"}
    run = federated(conf)
    rows = {c["client"]: len(c["rows"]) for c in json.loads((run / "partition.json").read_text())["clients"]}
    last = json.loads((run / "rounds.jsonl").read_text().splitlines()[-1])
    assert listed == {"private", "shared"}
    assert last["metrics"]["budget/private_rows"] == 2 * sum(rows.values()) / len(rows)
    assert last["metrics"]["budget/shared_rows"] == 12 and "budget/shared_rows/image" in last["metrics"]


def test_a_count_that_is_none_is_refused():
    header = codec.Header("method", 1, 1)
    record = codec.pack(Nothing(), header, None, Budget(3, 4))
    assert codec.budget(record) == Budget(3, 4) and codec.unpack(record) == Nothing()
    assert "budget" not in codec.pack(Nothing(), header, None, Budget())
    for bad in ({"private": -1.0}, {"private": float("nan")}, {"stolen": 1.0}):
        record["budget"] = MetricRecord(bad)
        with pytest.raises(WireError, match="budget"):
            codec.budget(record)
