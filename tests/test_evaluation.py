"""The one protocol: fixed prompts and noise, figures by hand, absent modalities; and the resources it draws on."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from flwr.app import Error, Message

from florilegium.assets import AssetError
from florilegium.config.composition import SettingsError
from florilegium.contract.tiny_models import tiny_models, write_judge
from florilegium.federation.federation import Client, Reply
from florilegium.protocol.payloads import Report
from florilegium.resources import Resources, located
from server_app.evaluation import IN_GRID, Evaluation, client_figures


@pytest.fixture
def resources(toy_conf):
    return Resources(toy_conf("evaluation.images_per_class=3"))


def reply(client, modality, **metrics):
    return Reply(Client(100 + client, client, modality), Report(metrics, 10))


# -- clients --------------------------------------------------------------------------------


def test_client_figures_by_hand():
    figures = client_figures(
        [
            reply(0, "image", accuracy=0.5, validation=0.6),
            reply(1, "image", accuracy=0.7, validation=0.4),
            reply(2, "text", accuracy=0.9, validation=0.8),
        ]
    )
    assert figures == pytest.approx(
        {
            "client/accuracy/0": 0.5,
            "client/accuracy/1": 0.7,
            "client/accuracy/2": 0.9,
            "client/accuracy/image": 0.6,
            "client/accuracy/text": 0.9,
            "client/accuracy": 0.75,
            "client/validation/0": 0.6,
            "client/validation/1": 0.4,
            "client/validation/2": 0.8,
            "client/validation/image": 0.5,
            "client/validation/text": 0.8,
            "client/validation": 0.65,
        }
    )


def test_an_absent_modality_or_figure_leaves_no_metric():
    assert client_figures([reply(0, "image", accuracy=0.5)]) == {
        "client/accuracy/0": 0.5,
        "client/accuracy/image": 0.5,
        "client/accuracy": 0.5,
    }
    assert client_figures([]) == {}


def test_every_client_is_asked_not_only_the_cohort(resources):
    asked = []
    federation = SimpleNamespace(clients=["all"], ask=lambda phase, *_, clients: asked.append((phase, clients)) or [])
    assert Evaluation(resources.conf, resources).clients(federation) == {}
    assert asked == [("evaluate", ["all"])]


# -- generator --------------------------------------------------------------------------------


class Painter:
    """A generator that paints each class in one grey, and remembers what it was asked."""

    def __init__(self, classes):
        self.asked, self.classes = [], classes

    def synthesize(self, prompts, seeds, guidance=None):
        self.asked.append((tuple(prompts), tuple(seeds)))
        greys = [20 * [self.classes.prompt(c) for c in range(len(self.classes))].index(p) for p in prompts]
        return torch.tensor(greys, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()


def test_prompts_and_noise_never_change(resources, toy_conf):
    painter = Painter(resources.classes)
    evaluation = Evaluation(resources.conf, resources)
    evaluation.generator(painter)
    evaluation.generator(painter)
    Evaluation(resources.conf, Resources(resources.conf)).generator(painter)
    prompts, noise = painter.asked[0]
    assert painter.asked[1:] == painter.asked[:1] * 2
    assert len(prompts) == 3 * len(resources.classes) and len(set(noise)) == len(noise)
    assert prompts[:4] == (resources.classes.prompt(0),) * 3 + (resources.classes.prompt(1),)
    fewer = Evaluation(toy_conf("evaluation.images_per_class=2"), resources)
    assert fewer.noise[2:4] == list(noise[3:5])  # a class's noise does not depend on how many images others have


def test_generator_figures_by_hand(resources, monkeypatch):
    """The judge is right on the first class alone (1 of 4); images of a class are equal, so diversity is 0."""
    evaluation = Evaluation(resources.conf, resources)
    monkeypatch.setattr(resources.judge(), "predict", lambda images: torch.zeros(len(images), dtype=torch.int64))
    judged = evaluation.generator(Painter(resources.classes))
    assert judged.metrics["t2i/accuracy"] == pytest.approx(0.25)
    assert judged.metrics["t2i/diversity"] == pytest.approx(0, abs=1e-5)
    clip = resources.clip_score()
    images = Painter(resources.classes).synthesize(evaluation.prompts, evaluation.noise)
    assert judged.metrics["t2i/clip_score"] == pytest.approx(clip.score(images, evaluation.prompts))
    assert len(judged.images) == IN_GRID * len(resources.classes) == len(judged.captions)
    assert judged.captions[:3] == [resources.classes[0]] * 2 + [resources.classes[1]]
    assert judged.images.dtype == torch.uint8


def test_one_image_a_class_has_no_diversity_to_report(toy_conf):
    conf = toy_conf("evaluation.images_per_class=1")
    resources = Resources(conf)
    judged = Evaluation(conf, resources).generator(resources.generator())
    assert set(judged.metrics) == {"t2i/accuracy", "t2i/clip_score"}
    assert all(math.isfinite(value) for value in judged.metrics.values())
    assert len(judged.images) == len(resources.classes)


@pytest.mark.parametrize("broken, asked", [(False, [0]), (True, [0, 0, 1])])
def test_a_global_model_is_judged_once_and_by_all_when_that_one_fails(broken, asked, toy_conf, federated):
    pair = "clients.mix=[{modality: image, model: resnet}, {modality: image, model: resnet}]"

    def tamper(question, reply):
        fails = broken and question.metadata.message_type == "evaluate" and question.metadata.dst_node_id == 100
        return Message(Error(2, "no"), reply_to=question) if fails else reply

    run = federated(toy_conf("method=fedavg", pair, "rounds=0", "timeouts.quorum=1"), tamper)
    entries = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert sorted(e["client"] for e in entries if e["phase"] == "evaluate") == asked
    metrics = json.loads((run / "rounds.jsonl").read_text().splitlines()[0])["metrics"]
    assert f"client/accuracy/{asked[-1]}" in metrics and "client/accuracy" in metrics
    assert metrics.get("clients/faults", 0) == (2 if broken else 0)  # asked alone, then with all


def test_protocol_states_the_judge_s_own_accuracy(resources):
    facts = Evaluation(resources.conf, resources).protocol()
    images, labels = resources.test_images()
    assert facts["judge_accuracy"] == pytest.approx((resources.judge().predict(images) == labels).float().mean().item())
    assert facts["images"] == 12 and facts["images_per_class"] == 3


def test_a_settings_typo_is_one_line(resources, toy_conf):
    with pytest.raises(SettingsError, match="^evaluation: images_per_class must lie between"):
        Evaluation(toy_conf("evaluation.images_per_class=0"), resources)


# -- resources --------------------------------------------------------------------------------


def test_judges_are_built_once_and_generators_are_each_arm_s_own(resources):
    assert resources.judge() is resources.judge() and resources.clip_score() is resources.clip_score()
    one, two = resources.generator(), resources.generator()
    assert one.pipe.unet is not two.pipe.unet
    prompts = [resources.classes.prompt(0)]
    assert torch.equal(one.synthesize(prompts, [1]), two.synthesize(prompts, [1]))


def test_progress_hears_of_synthesis_captions_and_tuning(toy_conf):
    from florilegium.config.diffusion import TuneSettings
    from florilegium.diffusion.tuning import TuneTexts

    heard = []
    resources = Resources(toy_conf(), progress=lambda **news: heard.append(news["phase"]))
    made = resources.generator()
    images = made.synthesize(["a disc"] * 2, [1, 2])
    captions = resources.captioner()(images)
    made.finetune(images, TuneTexts(["a disc"] * 2, captions), None, TuneSettings(), rounds=(1, 1), seed=0)
    assert sorted(set(heard)) == ["caption", "synthesize", "tune"]


def test_pooled_private_data_have_images_labels_and_texts(resources):
    images, labels, texts = resources.pooled_private()
    assert images.dtype == torch.uint8 and len(images) == len(labels) == len(texts) == 160
    assert resources.classes[int(labels[0])] in texts[0]


def test_names_are_assets_directories_or_hub_ids(tmp_path):
    assert located(str(tmp_path)) == str(tmp_path)
    assert located("org/name") == "org/name"
    for missing in ("no-such-model", "judges/none", str(tmp_path / "none")):
        with pytest.raises(AssetError, match="no-such-model|judges/none|no model directory"):
            located(missing)


@pytest.mark.parametrize(
    "part, build", [("model", "generator"), ("captioner", "captioner"), ("clip", "clip_score"), ("judge", "judge")]
)
def test_a_corrupt_model_is_one_line_that_names_it(part, build, toy_conf, tmp_path):
    broken = tmp_path / f"broken-{part}"
    shutil.copytree(tiny_models(("disc", "square", "triangle", "cross"))[part], broken)
    for file in broken.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    key = "data" if part == "judge" else "diffusion"
    with pytest.raises(AssetError, match=f"{broken} cannot be loaded") as caught:
        getattr(Resources(toy_conf(f"{key}.{part}={broken}")), build)()
    assert "\n" not in str(caught.value)


def test_a_judge_of_other_classes_is_refused(toy_conf, tmp_path):
    wrong = write_judge(tmp_path / "judge", ["disc", "square", "cross", "triangle"])
    with pytest.raises(AssetError, match="the judge .* knows 4 classes"):
        Resources(toy_conf(f"data.judge={wrong}")).judge()


def test_the_judge_s_default_is_that_of_the_clients_domain(toy_conf, tmp_path, monkeypatch):
    from florilegium import assets

    monkeypatch.setenv(assets.VARIABLE, str(tmp_path))
    conf = toy_conf()
    conf.data.judge = None
    write_judge(tmp_path / "models/judges/toy", list(Resources(conf).classes))
    assert Resources(conf).judge().names == ["disc", "square", "triangle", "cross"]
    write_judge(tmp_path / "models/judges/toy-private", 3)
    with pytest.raises(AssetError, match="toy-private knows 3 classes"):
        Resources(conf).judge()
