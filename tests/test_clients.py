"""The client room: memory that survives, the one training loop, and every phase through Flower's door."""

import json

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from torch import nn
from torch.nn.functional import cross_entropy

from client_app import distillation_set, views
from client_app.app import app
from client_app.batches import shuffled
from client_app.distillation_set import Kept
from client_app.memory import Memory
from florilegium import seeds
from florilegium.config import composition
from florilegium.data import toy
from florilegium.learning.augmentation import shifted
from florilegium.learning.fit import TrainingError, fit
from florilegium.protocol import codec, phases, pixels
from florilegium.protocol.codec import Header
from florilegium.protocol.payloads import Answers, Logits, Nothing, Profile, Report, Samples, Targets, Weights
from florilegium.runtime import continuation

IDS = torch.arange(24)
IMAGES = torch.stack([toy.draw(toy.CLASSES[n % 4], (220, 40, 40), 16, seeds.generator("test", n)) for n in range(24)])
TEXTS = tuple(f"a picture of a red {toy.CLASSES[n % 4]}" for n in range(24))
SAMPLES = {"image": Samples(IDS, images=pixels.encode(IMAGES)), "text": Samples(IDS, texts=TEXTS)}


@pytest.fixture
def ask(toy_conf):
    """`ask(client, phase, payload, round, step)`: one message through the app, unpacked; an error as its reason."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    held = {}

    def send(k, phase, payload, r=0, step=1, arm="method", overrides=()):
        if overrides not in held:
            ours = ["method.client.pretrain_epochs=2", "method.client.replay=16"]
            given = [*overrides] if "method=fedavg" in overrides else [*ours, *overrides]
            held[overrides] = json.dumps(composition.plain(toy_conf(*given)))
        message = Message(codec.pack(payload, Header(arm, r, step)), 100 + k, phases.PHASES[phase])
        message.metadata.__dict__["_message_id"] = f"{k}-{phase}-{r}-{step}"
        run_config = {"settings": held[overrides], "overrides": ""}
        reply = app(message, Context(1, 100 + k, {"partition-id": k}, RecordDict(), run_config))
        return reply.error.reason if reply.has_error() else codec.unpack(reply.content)

    return send


# -- memory ------------------------------------------------------------------------------------------------------------


def put(folder, r, step, value, part="model"):
    memory = Memory(folder, r, step)
    memory.begin()
    memory.write(part, {"x": torch.tensor([float(value)])}, {"value": value})


def get(folder, r, step, part="model"):
    found = Memory(folder, r, step).read(part)
    return found and found[1]["value"]


def test_a_message_sees_the_newest_version_before_its_own(tmp_path):
    assert get(tmp_path, 1, 1) is None
    put(tmp_path, 0, 1, 10)
    put(tmp_path, 1, 1, 11)
    put(tmp_path, 1, 3, 13)
    assert [get(tmp_path, *when) for when in ((0, 1), (1, 1), (1, 2), (1, 3), (2, 1))] == [None, 10, 11, 11, 13]


def test_going_back_forgets_what_came_after(tmp_path):
    for r in range(4):
        put(tmp_path, r, 1, r)
    put(tmp_path, 2, 1, 22)  # round 2 is run again
    assert get(tmp_path, 9, 1) == 22 and get(tmp_path, 2, 1) == 1


def test_old_versions_go_but_a_resumable_past_stays(tmp_path):
    for r in range(6):
        for step in (1, 3):
            put(tmp_path, r, step, 10 * r + step)
    kept = [when for _, when, _ in Memory(tmp_path, 9, 1).versions()]
    assert kept == [(2, 3), (3, 3), (4, 3), (5, 1), (5, 3)]  # the last of three rounds before, and all of this one
    put(tmp_path, 20, 1, 201)  # after a long absence
    assert get(tmp_path, 20, 1) == 53 and get(tmp_path, 21, 1) == 201


def test_parts_are_apart_and_a_torn_file_is_named(tmp_path):
    put(tmp_path, 1, 1, 1, part="samples")
    assert get(tmp_path, 2, 1) is None and get(tmp_path, 2, 1, part="samples") == 1
    (tmp_path / "model-000001-0001.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="model-000001-0001.safetensors cannot be read"):
        get(tmp_path, 2, 1)


# -- distillation sets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["image", "text"])
def test_samples_survive_storage(modality):
    samples = SAMPLES[modality]
    kept = Kept(samples.ids, pixels.decode(samples.images), samples.texts)
    back = distillation_set.from_tensors(distillation_set.to_tensors(kept))
    assert torch.equal(back.ids, kept.ids) and torch.equal(back.images, kept.images) and back.texts == kept.texts


KEPT = Kept(IDS, texts=TEXTS)


def test_targets_are_joined_by_id_in_their_own_order():
    ids = torch.tensor([7, 2])
    distillation = distillation_set.taught(KEPT, Targets(ids, torch.tensor([3, 1]), torch.zeros(2, 0)))
    assert distillation.samples.texts == (TEXTS[7], TEXTS[2]) and distillation.labels.tolist() == [3, 1]
    with pytest.raises(distillation_set.DistillationSetError, match="id 99, which is not among the 24"):
        distillation_set.taught(KEPT, Targets(torch.tensor([99]), torch.tensor([0]), torch.zeros(1, 0)))
    with pytest.raises(distillation_set.DistillationSetError, match="one id twice"):
        distillation_set.taught(KEPT, Targets(torch.tensor([7, 7]), torch.tensor([0, 0]), torch.zeros(2, 0)))


def test_a_replay_without_representations_is_not_mixed_with_one_that_has_them():
    def distillation(width):
        return distillation_set.taught(KEPT, Targets(IDS[:4], IDS[:4] % 4, torch.zeros(4, width)))

    assert len(distillation_set.joined(distillation(0), distillation(0))) == 8
    assert len(distillation_set.joined(distillation(8), distillation(0))) == 4


# -- training and views ------------------------------------------------------------------------------------------------


def test_fit_reports_each_term_and_calls_the_hook():
    torch.manual_seed(0)
    model, calls = nn.Linear(2, 2), []
    x, y = torch.eye(2), torch.tensor([0, 1])

    def objective(batch):
        return {"task": cross_entropy(model(batch[0]), batch[1]), "zero": batch[0].sum() * 0}

    means = fit(
        model,
        lambda epoch: [(x, y)],
        objective,
        lr=0.1,
        epochs=20,
        before_step=lambda m: calls.append(m.weight.grad is not None),
    )
    assert means["steps"] == 20 and means["zero"] == 0 and means["gradient"] > 0 and calls == [True] * 20
    assert cross_entropy(model(x), y) < means["task"]
    assert fit(model, lambda epoch: [(x, y)], lambda b: {"task": model(x).sum()}, lr=0.1, epochs=0) == {"steps": 0.0}


def test_fit_stops_at_a_loss_that_is_not_finite():
    model = nn.Linear(1, 1)
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        fit(model, lambda epoch: [0], lambda b: {"task": model(torch.tensor([[float("nan")]])).sum()}, lr=0.1)


def test_shuffled_covers_all_rows_and_leaves_out_a_last_piece_of_one():
    def order(count, size):
        return [p.tolist() for p in shuffled(count, size, seeds.generator("order"))]

    assert sorted(sum(order(10, 4), [])) == list(range(10)) and [len(p) for p in order(9, 4)] == [4, 4]
    assert order(1, 4) == [[0, 0]]  # batch norm needs two


def test_shifting_moves_pixels_and_brings_in_white():
    image = -torch.ones(1, 3, 4, 4)
    still = shifted(image, seeds.generator("a"), 0, False)
    assert torch.equal(still, image)
    moved = shifted(image.repeat(50, 1, 1, 1), seeds.generator("a"), 1, False)
    assert set(moved.unique().tolist()) == {-1.0, 1.0} and moved.shape == (50, 3, 4, 4)
    assert all(white in (0, 4, 7) for white in (moved[:, 0] == 1).sum((1, 2)).tolist())  # no, one or two edges


def test_second_views_depend_on_the_sample_alone():
    both = views.second_images(IMAGES, IDS, seed=5)
    assert torch.equal(views.second_images(IMAGES[3:4], IDS[3:4], seed=5)[0], both[3]) and not torch.equal(both, IMAGES)
    words = views.second_texts(["one two three four five six"] * 200, torch.arange(200), seed=5)
    kept = sum(len(text.split()) for text in words) / 1200
    assert 0.86 < kept < 0.94  # each word stays with probability 0.9
    assert views.text_with_tags("face", ["a", "b"]) == "face, a, b" and views.text_with_tags("face", []) == "face"


# -- phases ------------------------------------------------------------------------------------------------------------


def test_profile_and_evaluate(ask):
    profile = ask(1, "profile", Nothing())
    assert isinstance(profile, Profile) and (profile.client, profile.architecture) == (1, "vit")
    report = ask(1, "evaluate", Nothing())
    figures = {"accuracy", "validation", "loss", "accuracy_own", "validation_own"}
    assert report.examples == 64 and set(report.metrics) == figures


@pytest.mark.parametrize("k", range(4))
def test_a_round_of_fedmmkt_twice_gives_the_same_bits(ask, k):
    modality = "image" if k < 2 else "text"
    assert ask(k, "train", Nothing(), 0, 1) == Nothing()
    seen = [ask(k, "represent", SAMPLES[modality], 1, 2) for _ in range(2)]
    assert isinstance(seen[0], Answers) and seen[0].representations.shape == (24, 32)
    assert seen[0].augmented.shape == (24, 0) and 0.25 <= seen[0].confidence.min() <= seen[0].confidence.max() <= 1
    assert all(torch.equal(a, b) for a, b in zip(vars(seen[0]).values(), vars(seen[1]).values(), strict=True))
    targets = Targets(IDS[:20], IDS[:20] % 4, seen[0].representations[:20])
    reports = [ask(k, "distill", targets, 1, 3) for _ in range(2)]
    assert isinstance(reports[0], Report) and reports[0] == reports[1]
    terms = ["label", "align", "private"]
    assert {*terms, *(f"share/{t}" for t in terms), "gradient", "steps"} == set(reports[0].metrics)
    assert sum(reports[0].metrics[f"share/{t}"] for t in terms) == pytest.approx(1) and reports[0].examples == 20
    after = [ask(k, "represent", SAMPLES[modality], 2, 2) for _ in range(2)]
    assert torch.equal(after[0].representations, after[1].representations)
    assert not torch.equal(after[0].representations, seen[0].representations)
    assert ask(k, "distill", targets, 2, 3).examples == 36  # 20, and the replay of 16


def test_other_samples_for_the_same_message_get_other_noise(ask):
    """The first half of the samples is the same, and so are its representations before the noise."""
    noisy = ("privacy=gaussian", "method.variant=logit")
    ask(0, "train", Nothing(), 0, 1, overrides=noisy)
    swapped = torch.cat([IDS[:12], IDS[12:].flip(0)])
    others = Samples(swapped, images=pixels.encode(IMAGES[swapped]))
    first, again, other = (
        ask(0, "represent", samples, 1, 2, overrides=noisy).logits for samples in (SAMPLES["image"],) * 2 + (others,)
    )
    assert torch.equal(first, again) and not torch.isclose(first[:12], other[:12], atol=1e-3).all(1).any()


def test_answers_do_not_depend_on_other_messages(ask):
    """A client is stateless but for its disk: what other clients did in the process changes nothing."""
    ask(0, "train", Nothing(), 0, 1)
    alone = ask(0, "represent", SAMPLES["image"], 1, 1)
    for k in (3, 1):
        ask(k, "train", Nothing(), 0, 1)
    torch.manual_seed(123)
    assert torch.equal(ask(0, "represent", SAMPLES["image"], 1, 1).representations, alone.representations)


def test_variants(ask):
    logit = ("method.variant=logit",)
    ask(0, "train", Nothing(), 0, 1, overrides=logit)
    assert isinstance(ask(0, "represent", SAMPLES["image"], 1, 2, overrides=logit), Logits)
    report = ask(0, "distill", Targets(IDS[:8], IDS[:8] % 4, torch.zeros(8, 0)), 1, 3, overrides=logit)
    assert "align" not in report.metrics and report.metrics["label"] > 0
    for k, modality in ((0, "image"), (2, "text")):
        answers = ask(k, "represent", SAMPLES[modality], 1, 2, overrides=("method.variant=unimodal",))
        assert answers.augmented.shape == answers.representations.shape
        assert not torch.equal(answers.augmented, answers.representations)


def test_literal_retraining_sees_the_lesson_alone(ask):
    literal = ("method.client.mix_private=false", "method.client.replay=0", "method.client.alignment=0")
    for r in (1, 2):
        ask(0, "represent", SAMPLES["image"], r, 2, overrides=literal)
        report = ask(0, "distill", Targets(IDS[:8], IDS[:8] % 4, torch.randn(8, 32)), r, 3, overrides=literal)
        assert set(report.metrics) == {"label", "gradient", "steps"} and report.examples == 8


def test_no_kept_sample_is_no_error(ask):
    ask(0, "represent", SAMPLES["image"], 1, 2)
    report = ask(0, "distill", Targets(IDS[:0], IDS[:0], torch.zeros(0, 32)), 1, 3)
    assert report == Report({}, 0)


def test_standalone_starts_as_fedmmkt_does_and_trains_more(ask):
    both = ("references=standalone", "references.standalone.client.pretrain_epochs=2")
    for arm in ("method", "standalone"):
        ask(0, "train", Nothing(), 0, 1, arm=arm, overrides=both)
    start = [ask(0, "evaluate", Nothing(), 0, 2, arm=arm, overrides=both) for arm in ("method", "standalone")]
    assert start[0] == start[1]
    ask(0, "train", Nothing(), 1, 1, arm="standalone", overrides=both)
    assert ask(0, "evaluate", Nothing(), 1, 2, arm="standalone", overrides=both) != start[1]
    assert ask(0, "evaluate", Nothing(), 1, 2, arm="method", overrides=both) == start[0]


def test_fedavg_trains_from_the_weights_it_is_given(ask):
    def send(*what):
        pair = "clients.mix=[{modality:image,model:resnet},{modality:image,model:resnet}]"
        return ask(*what, overrides=("method=fedavg", pair))

    first = send(0, "train", Weights({}), 0, 1)
    again = send(0, "train", Weights({}), 0, 1)
    assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors) and first.examples > 10
    trained = send(1, "train", Weights(first.tensors), 1, 1)
    assert any(not torch.equal(first.tensors[name], trained.tensors[name]) for name in first.tensors)
    assert "the weights do not fit resnet" in send(0, "train", Weights({"x": torch.zeros(1)}), 1, 1)


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (("represent", SAMPLES["text"]), "ClientError: this client reads images; it was sent 0 images and 24 texts"),
        (("distill", Targets(IDS[:2], IDS[:2], torch.zeros(2, 0))), "ClientError: targets came, but no samples"),
        (("distill", Targets(IDS[:2], IDS[:2] + 9, torch.zeros(2, 0))), "WireError: Targets.labels has a value of 10"),
        (("represent", Samples(IDS[:1], images=(b"no image",))), "WireError: Samples.images cannot be read"),
    ],
)
def test_what_goes_wrong_is_one_line(ask, asked, line):
    reason = ask(0, *asked, 1, 1)
    assert reason.startswith(line) and "\n" not in reason


def test_a_client_or_arm_that_is_not_there(ask):
    assert ask(7, "profile", Nothing()).startswith("ClientError: this node is client 7, but clients.mix has 4")
    assert ask(0, "train", Nothing(), arm="nope") == "ValueError: no arm 'nope' in these settings; there are method"
    wide = Targets(IDS[:2], IDS[:2], torch.zeros(2, 5))
    ask(0, "represent", SAMPLES["image"], 1, 1)
    assert "targets are 5 wide, representations 32" in ask(0, "distill", wide, 1, 2)


def test_own_data_come_from_the_node_alone(toy_conf, tmp_path):
    from client_app.opening import open_client
    from tests.test_data import write

    own = write(tmp_path / "own", part=["private"] * 4, label=[0, 1, 2, 3])
    node = {"partition-id": 0, "data-path": own.path, "state-dir": str(tmp_path)}
    with pytest.raises(ValueError, match=r"row 1: class 'apple' is none of the federation's: disc, square"):
        open_client(toy_conf(), node | {"data-path": write(tmp_path / "other").path}, Header("method", 0, 1))
    client = open_client(toy_conf(), node, Header("method", 0, 1))
    assert client.examples == 4 and client.data.train.images.shape == (4, 3, 16, 16)
    assert str(client.memory.folder).startswith(str(tmp_path)) and client.memory.folder.name == "client-0"


def test_runs_whose_directories_have_one_name_have_memories_of_their_own(toy_conf, tmp_path):
    """A client that was first asked in round 3 must not find what it learnt in another run."""
    from client_app.opening import open_client

    node = {"partition-id": 0, "state-dir": str(tmp_path / "site")}

    def memory(conf, r):
        return open_client(conf, node, Header("method", r, 1)).memory

    runs = [continuation.begun(toy_conf(f"out={tmp_path / place / 'first'}")) for place in ("a", "b", "b")]
    memory(runs[0], 1).write("model", {"x": torch.ones(1)}, {"value": 1})
    assert memory(runs[0], 3).read("model") is not None  # its own, in a later round
    assert memory(runs[1], 3).read("model") is None and memory(runs[2], 3).read("model") is None
    assert len({conf.run_id for conf in runs}) == 3 and all(conf.run_id.startswith("first-") for conf in runs)
    assert continuation.begun(runs[0]).run_id == runs[0].run_id  # made once
    old = toy_conf(f"out={tmp_path / 'a' / 'first'}")  # of a run before there were ids
    assert memory(old, 1).folder == tmp_path / "site" / "first" / "method" / "client-0"
    old.run_id = "../../elsewhere"
    assert memory(old, 1).folder == tmp_path / "site" / "elsewhere" / "method" / "client-0"


WRONG = ["variant=other", "confidence=none", "alignment=-1", "batch=1", "learning_rate.text=-1"]


@pytest.mark.parametrize("key", WRONG)
def test_settings_are_range_checked_in_one_line(key, toy_conf):
    with pytest.raises(composition.SettingsError) as caught:
        toy_conf(f"method.client.{key}")
    section, _, name = f".{key.split('=')[0]}".rpartition(".")
    assert str(caught.value).startswith(f"method.client{section}: {name} ") and "\n" not in str(caught.value)
