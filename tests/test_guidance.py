"""Guidance end to end on toy data: sent once, looked at once, composed with every method, refused in one line."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from client_app.batches import ClientError
from client_app.guidance import phases as client_side
from florilegium import preflight
from florilegium.catalogue import CATALOGUE
from florilegium.config import composition
from florilegium.config.composition import SettingsError
from florilegium.data import datasets, private, stored_images
from florilegium.data.datasets import Classes, open_dataset
from florilegium.methods.guidance.prompts import class_prompts
from florilegium.methods.guidance.settings import GuidanceSettings
from florilegium.protocol import codec
from florilegium.protocol.payloads import Examples, Guide, Nothing
from florilegium.protocol.validation import WireError
from strategies.averaging.feddyn import FedDyn, FedDynSettings
from strategies.blocks.guidance import Guided
from strategies.blocks.proxies import proxies, resolved
from tests.tiers import first

TWO = "clients.mix=[{modality: image, model: resnet}, {modality: image, model: resnet}]"
AT = "method.client.guidance"
SMALL = [f"{AT}.semanticfl.images_per_class=4", f"{AT}.semanticfl.student.epochs=2"]
AVERAGING = [name for name, entry in CATALOGUE.items() if entry.one_architecture]


@pytest.fixture
def conf_of(toy_conf, tmp_path):
    def composed(method, *overrides):
        given = [f"method={method}", TWO, "evaluation.images_per_class=2", f"{AT}.cache={tmp_path / 'cache'}", *SMALL]
        return toy_conf(*given, *overrides)

    return composed


def metrics(run):
    return [json.loads(line)["metrics"] for line in (run / "rounds.jsonl").read_text().splitlines()]


def ledger(run, phase):
    entries = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    return [e for e in entries if e["phase"] == phase]


# -- sent once, looked at once -----------------------------------------------------------------------------------------


def test_the_guide_is_sent_once_and_rows_are_looked_at_once(conf_of, federated, tmp_path):
    run = federated(conf_of("feddifrc", "rounds=2"))
    first, *later = metrics(run)
    rows = sum(len(c["rows"]) for c in json.loads((run / "partition.json").read_text())["clients"])
    asked = rows * (2 + 3)  # H, F+ and the three wrong classes
    assert first["guide/sent"] == 2 and first["cache/misses"] == asked
    public = len(open_dataset(conf_of("feddifrc").data).public("train"))
    assert first["cache/passes"] == asked + 2 * public  # the PCA's images, and their mean
    assert [e["round"] for e in ledger(run, "represent")] == [0, 0]
    for m in later:
        assert m["cache/hits"] == asked and m["cache/misses"] == m["cache/passes"] == 0
        assert sum(m[f"train/share/{t}"] for t in ("task", "tdcl", "ndcr")) == pytest.approx(1)
        assert m["train/share/tdcl"] > 1e-3 and m["train/share/ndcr"] > 1e-3

    again = conf_of("feddifrc", "rounds=1", f"out={tmp_path / 'again'}")  # another run, the same cache
    warm = metrics(federated(again))
    assert warm[0]["cache/passes"] == 0 and warm[0]["cache/hits"] == asked
    assert warm[1]["train/tdcl"] == later[0]["train/tdcl"]


@pytest.mark.parametrize("method", ["feddifrc", "semanticfl"])
def test_a_round_uploads_what_fedavg_uploads(method, conf_of, federated, tmp_path):
    guided = ledger(federated(conf_of(method)), "train")[-1]["up"]
    plain = ledger(federated(conf_of("fedavg", f"out={tmp_path / 'plain'}")), "train")[-1]["up"]
    head = 32 * 16 * 4 if method == "semanticfl" else 0  # toy texts are 16 wide, z 32: a learned head
    assert head <= guided - plain <= head + 700  # and the figures of its terms


@pytest.mark.parametrize("method", first(AVERAGING, 6))
def test_both_guides_compose_with_every_method_that_averages_weights(method, conf_of, federated):
    run = federated(conf_of(method, f"guidance@{AT}=both"))
    assert not [e for e in ledger(run, "train") if e["fault"]]
    shares = {name for name in metrics(run)[-1] if name.startswith("train/share/")}
    assert {f"train/share/{t}" for t in ("task", "tdcl", "ndcr", "consistency", "text_contrast", "replay")} <= shares


# -- the student -------------------------------------------------------------------------------------------------------


def test_the_student_is_the_start_and_is_sent_once(conf_of, federated, tmp_path):
    """Round 0 judges the student; in *server alone* nothing changes it, and the guide has no student in it."""
    run = federated(conf_of("semanticfl", "rounds=2"))
    m = metrics(run)
    assert 0 < m[0]["guide/student/accuracy"] <= 1 and m[0]["guide/sent"] == 2 and m[1]["train/replay"] > 0
    guides = [e["down"] for e in ledger(run, "represent")]
    weights = [e["down"] for e in ledger(run, "train") if e["round"] == 1]
    assert len(guides) == 2 and min(guides) > max(weights)  # a student, and features of images
    alone = federated(conf_of("semanticfl", "experiment=semanticfl_server_alone", "rounds=2", f"out={tmp_path / 'a'}"))
    assert len({a["client/accuracy"] for a in metrics(alone)} | {m[0]["client/accuracy"]}) == 1
    assert max(e["down"] for e in ledger(alone, "represent")) < min(weights)


def test_the_start_replaces_models_and_nothing_that_travels_beside_them(tmp_path):
    """Student 7: models begin with it, also under a group's name; control variates and drifts stay 0."""
    settings = composition.typed(GuidanceSettings, {"name": "semanticfl", "cache": str(tmp_path)}, AT)
    guided = Guided(settings, SimpleNamespace(conf=SimpleNamespace(out=None)))
    guided.student = {"body.w": torch.tensor([7.0])}
    federation = SimpleNamespace(clients=[SimpleNamespace(modality="image", architecture="resnet")])
    names = ("body.w", "control.body.w", "drift.body.w", "guidance.text", "image resnet.body.w")
    started = guided.started({name: torch.zeros(1) for name in names}, federation)
    assert {name: value.item() for name, value in started.items()} == dict(zip(names, (7, 0, 0, 0, 7), strict=True))


def test_feddyn_keeps_no_drift_of_what_a_guide_learns():
    """Clients counter the drift of their model alone, so a drift of the guide's head would only ever grow."""
    fresh = {"body.w": torch.ones(1), "body.running_mean": torch.ones(1), "guidance.text": torch.ones(1)}
    client = SimpleNamespace(id=0, modality="image", architecture="resnet")
    federation = SimpleNamespace(
        clients=[client], ask=lambda *_, **__: [SimpleNamespace(client=client, body=SimpleNamespace(tensors=fresh))]
    )
    strategy = FedDyn(FedDynSettings())
    strategy.begin(federation)
    assert set(strategy.weights) == {*fresh, "drift.body.w"}


def test_a_student_with_dropout_is_the_same_whatever_was_drawn_before(conf_of, tmp_path):
    """And nothing that is drawn later depends on it."""

    def distilled(kind):
        mix = f"clients.mix=[{{modality: image, model: {kind}}}, {{modality: image, model: {kind}}}]"
        dropout = "clients.architectures.vit.hidden_dropout_prob=0.5"
        conf = conf_of("semanticfl", mix, "+" + dropout)
        guided = Guided(conf.method.client.guidance, SimpleNamespace(conf=conf, width=conf.clients.width))
        guided.prompts = ["a 0", "a 1"]
        shown = SimpleNamespace(
            images=torch.arange(4 * 3 * 32 * 32).view(4, 3, 32, 32) % 256, labels=torch.tensor([0, 1] * 2)
        )
        shown.images = shown.images.to(torch.uint8)
        found = SimpleNamespace(joined=torch.randn(4, 40, generator=torch.Generator().manual_seed(1)))
        student, _, _ = guided.distilled(shown, found, torch.zeros(2, 4))
        return student.state_dict()

    torch.manual_seed(1)
    first = distilled("vit")
    torch.manual_seed(2)
    again = distilled("vit")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(2))


def test_arms_that_differ_at_clients_share_a_guide(conf_of, federated, tmp_path):
    folder = tmp_path / "cache" / "guides"
    federated(conf_of("semanticfl"))
    made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    federated(conf_of("semanticfl", "experiment=semanticfl_consistency_alone", f"out={tmp_path / 'other'}"))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == made
    federated(conf_of("semanticfl", f"{AT}.semanticfl.student.epochs=1", f"out={tmp_path / 'third'}"))
    assert len(list(folder.iterdir())) == 2 and len(list((tmp_path / "cache" / "proxies").iterdir())) == 1


def test_negatives_and_replay_of_feddifrc_come_from_images(conf_of, federated):
    run = federated(conf_of("feddifrc", "experiment=feddifrc_images"))
    first, last = metrics(run)
    rows = sum(len(c["rows"]) for c in json.loads((run / "partition.json").read_text())["clients"])
    assert first["cache/misses"] == 2 * rows and last["train/replay"] > 0 and last["train/tdcl"] > 0


# -- where it is extracted, and what leaves the client -----------------------------------------------------------------


def test_features_from_the_server_train_exactly_as_own_ones(conf_of, federated, tmp_path):
    own = metrics(federated(conf_of("feddifrc")))
    conf = conf_of(
        "feddifrc",
        f"{AT}.feddifrc.location=server",
        f"{AT}.allow_upload=true",
        f"out={tmp_path / 's'}",
        f"{AT}.cache={tmp_path / 'other'}",
    )
    run = federated(conf)
    there = metrics(run)
    same = ("train/task", "train/tdcl", "train/ndcr", "client/accuracy")
    assert {k: there[-1][k] for k in same} == {k: own[-1][k] for k in same}
    assert there[0]["cache/passes"] > there[0]["cache/misses"] == own[0]["cache/misses"]  # the PCA's images count too
    assert [e["up"] > 20_000 for e in ledger(run, "represent")] == [True, True, False, False]  # images once


@pytest.mark.parametrize("source", ["generated", "private_local", "upload"])
def test_sources_of_anchors(source, conf_of, federated):
    run = federated(
        conf_of(
            "semanticfl",
            "experiment=semanticfl_anchors",
            f"{AT}.semanticfl.source={source}",
            f"{AT}.semanticfl.anchors.per_class=2",
            *([f"{AT}.allow_upload=true"] if source == "upload" else []),
        )
    )
    m = metrics(run)
    assert sum(m[0][f"guide/weight/{level}"] for level in ("up1", "up2", "vae")) == pytest.approx(1)
    uploads = [e for e in ledger(run, "represent") if e["up"] > 1000]
    assert len(uploads) == (2 if source == "upload" else 0) and m[1]["train/consistency"] > 0


@pytest.mark.parametrize(
    "given",
    [{"feddifrc": {"location": "server"}, "name": "both"}, {"semanticfl": {"source": "upload"}, "name": "semanticfl"}],
)
def test_no_image_leaves_without_permission(given):
    with pytest.raises(SettingsError, match="private images to the server; allow_upload=true permits it"):
        composition.typed(GuidanceSettings, given, AT)


def test_a_client_gives_nothing_away_that_its_own_settings_do_not_allow():
    class Half:
        class settings:
            guidance = GuidanceSettings(name="feddifrc")

    with pytest.raises(ClientError, match="no image leaves this client"):
        client_side.represent(Half(), None, Nothing())


# -- lost guides, resumed runs -----------------------------------------------------------------------------------------


def test_a_client_that_lost_its_guide_is_named_and_gets_it_again(conf_of, federated):
    conf = conf_of("feddifrc", "rounds=3", "timeouts.quorum=1")

    def lose(question, reply):
        if question.metadata.message_type == "evaluate" and codec.header(question.content).round == 1:
            for path in Path(conf.clients.state_dir).rglob("client-1/guide.safetensors"):
                path.unlink()
        return reply

    run = federated(conf, lose)
    (fault,) = [e for e in ledger(run, "train") if e["fault"]]
    assert (fault["client"], fault["round"]) == (1, 2) and "no guide was kept" in fault["fault"]
    assert [(e["client"], e["round"]) for e in ledger(run, "represent")] == [(0, 0), (1, 0), (1, 3)]


@pytest.mark.parametrize("overrides", [(), (f"{AT}.feddifrc.condition=add_all_tokens", f"{AT}.feddifrc.refresh=2")])
def test_a_resumed_run_equals_an_uninterrupted_one(overrides, conf_of, resumed):
    whole, again = map(metrics, resumed(partial(conf_of, "feddifrc", "rounds=3", *overrides), "evaluate"))
    assert len(again) == 4
    assert [m["guide/sent"] for m in again if "guide/sent" in m] == [2]  # the clients still keep it
    for a, b in zip(whole[1:], again[1:], strict=True):
        assert {k: v for k, v in a.items() if "cache" not in k} == {k: v for k, v in b.items() if "cache" not in k}


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, line",
    [
        (["clients.width=24"], r"diffusion.features.dims sum to 32, clients.width is 24; method.client.guidance"),
        ([f"{AT}.prompt='a photo'"], "have the same prompt 'a photo'"),
        ([f"+{AT}.prompts.disc='a disc'"], "class '.*' has no prompt in guidance.prompts"),
        ([f"+{AT}.prompts.zebra='a zebra'"], "names 'zebra', which is no class"),
        ([f"{AT}.prompt='a photo of a {{nam}}'"], "'nam'"),
        ([f"{AT}.feddifrc.tdcl_form=tiled"], "tdcl_form must be one of per_sample, released_tiled, got 'tiled'"),
        ([f"{AT}.feddifrc.temperature=0"], "temperature must lie between"),
        ([f"{AT}.name=feddiffrc"], "name must be one of none, feddifrc"),
        (["clients.mix=[{modality: text, model: bert}, {modality: text, model: bert}]"], "guides image clients"),
        (
            [f"{AT}.feddifrc.condition=add_all_tokens", f"{AT}.feddifrc.location=server", f"{AT}.allow_upload=true"],
            "location must be client",
        ),
    ],
)
def test_bad_settings_are_one_line_before_anything_starts(overrides, line, conf_of):
    with pytest.raises(SettingsError, match=line) as caught:
        preflight.validate(conf_of("feddifrc", *overrides))
    assert "\n" not in str(caught.value)


def test_prompts_of_classes():
    classes = Classes(("coat", "trousers"), ("a", ""))
    assert class_prompts(classes, GuidanceSettings()) == ["A picture of a coat.", "A picture of trousers."]
    assert class_prompts(classes, GuidanceSettings(prompt="a photo of a {name}")) == [
        "a photo of a coat",
        "a photo of a trousers",
    ]
    own = GuidanceSettings(prompts={"coat": "a coat", "trousers": "two legs"})
    assert class_prompts(classes, own) == ["a coat", "two legs"]


def test_images_that_are_nobodys(toy_conf):
    from florilegium.resources import Resources

    emoji = Resources(replace(toy_conf(), data=composition.compose(["data=emoji"]).data))
    assert resolved("auto", emoji) == "public" and resolved("generated", emoji) == "generated"
    shown = proxies("public", 3, emoji, 0)
    assert torch.equal(shown.labels.bincount(), torch.full((24,), 3)) and shown.images.shape == (72, 3, 32, 32)
    assert torch.equal(proxies("public", 3, emoji, 0).images, shown.images)
    fashion = Resources(replace(toy_conf(), data=composition.compose(["data=fashion"]).data))
    assert resolved("auto", fashion) == "generated"
    with pytest.raises(ValueError, match="fashion has no public row of"):
        resolved("public", fashion)


def guide(width=32, rows=0, shown=0):
    pca = {
        "pca.up1.mean": torch.zeros(4),
        "pca.up1.components": torch.zeros(width, 4),
        "pca.up1.explained": torch.zeros(width),
    }
    own = torch.arange(rows), torch.zeros(rows, 5, 32).half()
    seen, labels = torch.zeros(shown, width).half(), torch.zeros(shown, dtype=torch.int64)
    tensors = pca | {"student.w": torch.zeros(3)}
    return Guide("v", tensors, torch.zeros(4, 0, 32), torch.zeros(4, 0), *own, seen, labels, seen, seen, labels)


def test_a_client_refuses_a_guide_that_does_not_fit():
    class Half:
        examples, width = 7, 32

    s = GuidanceSettings(name="feddifrc")
    client_side.check_guide(Half(), s, guide())
    with pytest.raises(ClientError, match="the guide projects to 16, this client's representations are 32 wide"):
        client_side.check_guide(Half(), s, guide(width=16))
    at_server = composition.typed(
        GuidanceSettings, {"name": "feddifrc", "allow_upload": True, "feddifrc": {"location": "server"}}, AT
    )
    with pytest.raises(ClientError, match="features of 3 rows, this client has 7"):
        client_side.check_guide(Half(), at_server, guide(rows=3))
    broken = guide()
    del broken.tensors["pca.up1.mean"]
    with pytest.raises(ClientError, match="the guide's projection: a projection has mean, components, explained"):
        client_side.check_guide(Half(), s, broken)


def test_a_client_refuses_a_student_and_features_that_do_not_fit():
    class Half:
        examples, width, architecture = 7, 32, "resnet"

        class classifier:
            @staticmethod
            def state_dict():
                return {"w": torch.zeros(3)}

    def settings(**given):
        return composition.typed(GuidanceSettings, {"name": "semanticfl", "semanticfl": given}, AT)

    client_side.check_guide(Half(), settings(), guide(shown=2))
    with pytest.raises(ClientError, match="the guide's replay has 0 features of 32, representations have 32"):
        client_side.check_guide(Half(), settings(), guide())
    client_side.check_guide(Half(), settings(replay=0.0), guide())
    other = guide(shown=2)
    other.tensors["student.w"] = torch.zeros(4)
    with pytest.raises(ClientError, match="the guide's student does not fit resnet: w differs"):
        client_side.check_guide(Half(), settings(), other)
    client_side.check_guide(Half(), settings(consistency=0.0), other)  # nothing of it is used
    images = composition.typed(GuidanceSettings, {"name": "feddifrc", "feddifrc": {"replay": 1.0}}, AT)
    with pytest.raises(ClientError, match="the guide's unprompted has 0 features"):
        client_side.check_guide(Half(), images, guide())


def test_guides_and_examples_cross_the_wire_checked():
    header = codec.Header("method", 0, 1)
    back = codec.unpack(codec.pack(guide(rows=2), header), Guide, bounds={"C": 4})
    assert back.version == "v" and back.features.dtype == torch.float16 and back.visual.shape == (4, 0, 32)
    assert "student.w" in back.tensors and back.replay.shape == (0, 32)
    named = guide(shown=2)
    named.replay_labels[1] = 4
    with pytest.raises(WireError, match="Guide.replay_labels has a value of 4, but there are 4 of C"):
        codec.unpack(codec.pack(named, header), Guide, bounds={"C": 4})
    rows = Examples(torch.tensor([1, 2]), torch.tensor([0, 9]), (b"a", b"b"))
    with pytest.raises(WireError, match="Examples.labels has a value of 9, but there are 4 of C"):
        codec.unpack(codec.pack(rows, header), Examples, bounds={"C": 4})
    bad = guide()
    bad.tensors["pca.up1.mean"] = torch.full((4,), torch.nan)
    with pytest.raises(WireError, match="NaN or infinite"):
        codec.unpack(codec.pack(bad, header), Guide)


# -- rows that lie in a file -------------------------------------------------------------------------------------------

SEGMENT = "clients.task=segmentation"
WHERE_ROWS_ARE_READ = {
    "both": ["feddifrc", f"guidance@{AT}=both"],
    "axes of a batch": ["feddifrc", "diffusion.features.pca=per_batch"],
    "a condition": ["feddifrc", f"{AT}.feddifrc.condition=add_all_tokens"],
    "at the server": ["feddifrc", f"{AT}.feddifrc.location=server", f"{AT}.allow_upload=true"],
    "segmentation": ["feddifrc", SEGMENT, "method.client.local_epochs=1"],
    "levels": ["semanticfl", "experiment=semanticfl_anchors", f"{AT}.semanticfl.source=private_local"],
}


@pytest.fixture
def rows_in_files(monkeypatch):
    """`rows_in_files(limit)`: images of more bytes than `limit` lie in a file from now on, at clients and server."""
    readers = (private._part, private._judged, datasets._held_out)

    def opened(limit):
        monkeypatch.setattr(stored_images, "LARGEST", limit)
        for read in readers:
            read.cache_clear()

    yield opened
    for read in readers:
        read.cache_clear()


@pytest.mark.parametrize("given", first(WHERE_ROWS_ARE_READ.values(), 2), ids=WHERE_ROWS_ARE_READ)
def test_images_in_a_file_train_exactly_as_images_in_memory(given, conf_of, federated, tmp_path, rows_in_files):
    """A third run asks the first's cache with rows of a file: nothing is computed again."""

    def run(name, cache):
        out = federated(conf_of(*given, f"out={tmp_path / name}", f"{AT}.cache={tmp_path / cache}"))
        assert not [e for e in map(json.loads, (out / "ledger.jsonl").read_text().splitlines()) if e["fault"]]
        return metrics(out)

    def without_costs(found):
        return [{k: v for k, v in m.items() if not k.startswith(("cache/", "bytes/"))} for m in found]

    rows_in_files(1 << 28)
    kept = run("kept", "a")
    rows_in_files(1000)
    stored, warm = run("stored", "b"), run("warm", "a")
    assert without_costs(stored) == without_costs(kept) == without_costs(warm)
    if "cache/misses" in kept[0]:
        assert stored[0]["cache/misses"] == kept[0]["cache/misses"] and warm[0]["cache/misses"] == 0
