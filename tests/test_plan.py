"""`florilegium plan`: what clients, frozen features and the generator take, worked by hand. Nothing is fetched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from florilegium.cli import main
from florilegium.config import composition
from florilegium.config.diffusion import TuneSettings
from florilegium.config.settings import Settings
from florilegium.diffusion.sizes import DecoderSize, decoder_size
from florilegium.methods.guidance.settings import FedDifRCSettings, GuidanceSettings, SemanticFLSettings
from florilegium.models.sizes import PAPERS, BodySize, body_size
from florilegium.runtime import client_plan
from florilegium.runtime.plan import GIB, UTILISATION, lower_tuning, plan, tuning_memory

RATE = 1e14
SECOND = ((128, 8), (256, 4), (512, 2))  # channels and side of a ResNet-10's later stages, for 64 pixels
CONFIGS = {
    "microsoft/resnet-18": transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    ),
    "google/vit-base-patch32-224-in21k": transformers.ViTConfig(patch_size=32),
    "microsoft/beit-base-patch16-224": transformers.BeitConfig(),
    "bert-base-uncased": transformers.BertConfig(),
    "distilbert-base-uncased": transformers.DistilBertConfig(),
    "roberta-base": transformers.RobertaConfig(vocab_size=50265, max_position_embeddings=514),
}


def told(*overrides: str, memory: float | None = None) -> dict[str, tuple[str, str]]:
    found = plan(composition.compose(list(overrides)), RATE, memory)
    return {what: (value, how) for what, value, how in found.lines}


# -- guided experiments ------------------------------------------------------------------------------------------------


def test_a_guided_experiment_by_hand() -> None:
    """FedDifRC on 50,000 images of ten classes: H, F+ and nine negatives are 11 rows each, of 512 values in float16.

    The 512 calibration images are drawn, and seen twice. A ResNet-10 has 4.9 M weights.
    """
    found = told("experiment=feddifrc/table1_nid1_02")
    assert found["hours of features"][1] == "50,512 images, 551,024 rows, 512 drawn, once"
    assert found["disk, features"][0] == f"{550_000 * 512 * 2 / GIB:.2g} GiB"
    up, _, down, *_ = found["bytes, method"][0].replace(",", "").split()
    assert float(up) == pytest.approx(4 * 4.9, rel=0.08) == pytest.approx(float(down), rel=0.08)
    size = decoder_size("stable-diffusion-v1-5")
    share = (224 / 512) ** 2
    operations = share * (50_512 * size.encoding + 551_024 * size.flops) + 512 * 50 * 2 * size.flops
    assert float(found["hours of features"][0]) == pytest.approx(operations / UTILISATION / RATE / 3600, rel=0.05)
    assert float(found["hours of clients' training"][0]) > 0.1 and "hours of the generator" not in found


@pytest.mark.parametrize("experiment", ["semanticfl/cifar100_nid2", "fedafd/iid_flickr30k"])
def test_experiments_without_a_tuned_generator_have_hours_disk_and_bytes(experiment) -> None:
    found = told(f"experiment={experiment}")
    hours, memory = found["hours of clients' training"][0], found["GPU memory, a client"][0]
    assert float(hours) > 0 and memory.endswith("GiB") and "disk, models" in found and "bytes, method" in found


def test_the_embedded_data_are_counted_where_they_lie() -> None:
    conf = composition.compose(["data=toy", "clients=toy"])
    assert client_plan.rows_and_classes(conf) == (160, 4)
    assert client_plan.rows_and_classes(composition.compose(["data=folder", "data.path=/nowhere"])) is None
    found = told("method=feddifrc", "data=folder", "data.path=/nowhere", "clients=ten", "data.classes=[a,b]")
    assert found["hours of clients' training"][0] == "unknown"


def test_what_guidance_asks_by_hand() -> None:
    assert GuidanceSettings().planned(10, 100) is None
    plain = GuidanceSettings(name="feddifrc", calibration="public").planned(10, 100)
    assert (plain.own, plain.kept, plain.server, plain.drawn) == (11, 11, 512, 0)
    again = GuidanceSettings(name="feddifrc", feddifrc=FedDifRCSettings(condition="add_all_tokens", refresh=10))
    assert (again.planned(4, 25).looked, again.planned(4, 25).own, again.planned(4, 25).kept) == (3, 3 * 5, 5)
    images = FedDifRCSettings(negatives_from="images")
    assert GuidanceSettings(name="feddifrc", feddifrc=images).planned(10, 100).own == 2
    local = SemanticFLSettings(source="private_local", form="anchors", start="fresh", images_per_class=8)
    asked = GuidanceSettings(name="semanticfl", semanticfl=local).planned(10, 100)
    assert (asked.own, asked.kept, asked.server) == (1, 0, 80)


# -- clients -----------------------------------------------------------------------------------------------------------


def test_hours_of_training_by_hand(monkeypatch) -> None:
    """Two of four clients a round, 10 rounds of 2 epochs over 1,000 rows: 10,000 rows, each three forward passes."""
    conf = composition.compose(["method=fedavg", "clients=image", "rounds=10", "cohort.fraction=0.5"])
    arm = conf.arms()["method"]
    arm.client.local_epochs, arm.client.batch = 2, 50
    size = BodySize(1e6, 1e6, 1e9, 3.0)
    monkeypatch.setattr(client_plan, "STEP", 0.0)
    expected = 10_000 * 3e9 / (client_plan.CLIENT_UTILISATION * 1e12)
    assert client_plan.training(conf, arm, [size], 1000, 1e12) == pytest.approx(expected)
    monkeypatch.setattr(client_plan, "STEP", 1.0)  # 200 steps that wait
    assert client_plan.training(conf, arm, [size], 1000, 1e15) == pytest.approx(200)


@pytest.mark.parametrize("name", PAPERS)
def test_operations_of_the_papers_models_are_those_of_their_nets(name) -> None:
    with torch.device("meta"):
        net = transformers.AutoModel.from_config(CONFIGS[name]).eval()
        image = isinstance(CONFIGS[name], (transformers.ResNetConfig, transformers.ViTConfig, transformers.BeitConfig))
        given = torch.zeros(1, 3, 224, 224) if image else torch.zeros(1, 32, dtype=torch.int64)
        if not image:
            net = getattr(net, "encoder", None) or net.transformer
            given = torch.zeros(1, 32, 768)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(given)
    count = counter.get_total_flops() / (1 if image else 32)
    assert count / 1e9 == pytest.approx(PAPERS[name][1], rel=0.1)


def test_a_body_of_settings_is_counted_and_a_hub_s_is_not() -> None:
    conf: Settings = composition.compose(["method=fedavg", "clients=feddifrc_ten", "data=cifar10"])
    size = body_size(conf.clients, "image", "resnet", 32)
    assert size.weights == size.trained == pytest.approx(4.9e6, rel=0.01) and size.passes == 3
    stem, stages = 49 * 3 * 64 * 32**2, (18 * 64**2 * 16**2, *[(9 + 18 + 1) / 2 * c**2 * s**2 for c, s in SECOND])
    assert size.flops == pytest.approx(2 * (stem + sum(stages)), rel=0.02)  # multiply, add
    conf.clients.architectures["mine"] = {"pretrained": "nobody/nothing"}
    assert body_size(conf.clients, "image", "mine", 32) is None


# -- the generator -----------------------------------------------------------------------------------------------------


def test_the_second_model_of_glide_counts() -> None:
    """27 steps without guidance, 400 samples a round, 20 rounds."""
    given = ["experiment=fedmmkt/table3_flowers102_glide"]
    size = decoder_size("models/glide")
    assert size.upsampling == pytest.approx(1.27e12, rel=0.05) and decoder_size("stable-diffusion-2-1").upsampling == 0
    hours = [float(told(*given, f"diffusion.upsample={on}")["hours of the generator"][0]) for on in ("true", "false")]
    expected = 20 * 400 * 27 * size.upsampling / (UTILISATION * RATE) / 3600
    assert hours[0] - hours[1] == pytest.approx(expected, rel=0.1)


def test_the_command_takes_paths_as_people_type_them(capsys) -> None:
    """As `florilegium run` does: the same words make a plan."""
    options = main.parse(["plan", "data=folder", "data.path=~/My photos (1)", "clients=image", "--tflops", "1"])
    assert options.command(options) in (0, 1)
    assert "bytes, method" in capsys.readouterr().out


def test_the_advice_is_what_saves_most() -> None:
    """A large decoder trained whole: adapters. Trained adapters: the batch, not moments of a few megabytes."""
    size = DecoderSize("x", 860_000_000, 1e8, 7e11, 64, 512)
    whole = TuneSettings(lora=None, batch=2, checkpointing=True)
    assert lower_tuning(size, whole, "bfloat16") == "tuning.lora=16 trains adapters alone"
    adapters = TuneSettings(lora=16, batch=32, checkpointing=True)
    assert lower_tuning(size, adapters, "bfloat16") == "lower tuning.batch (32)"
    saved = tuning_memory(size, adapters, "bfloat16") - tuning_memory(size, replace(adapters, batch=1), "bfloat16")
    assert saved > 2**30
    glide = plan(composition.compose(["experiment=fedmmkt/table3_flowers102_glide"]), RATE, 4 * GIB)
    assert any("tuning needs" in line and "lower tuning.batch (16)" in line for line in glide.advice)
