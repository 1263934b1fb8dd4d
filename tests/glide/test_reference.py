"""GLIDE against the official code: text states, outputs, sampling traces, training loss, token ids, key table.

Tolerances separate right from wrong: the mildest known mistake (norm eps 1e-6) moves an output by 1e-4, tanh GELU the
text states by 6e-4; the official float32 itself is 2e-4 from float64 at the end of the upsampler's 27 steps.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import interpolate, mse_loss

from florilegium.cli import main
from florilegium.diffusion.glide import conversion, sampling
from florilegium.diffusion.glide.conversion import BASE, UPSAMPLER, GlideShape
from florilegium.diffusion.glide.tokenizer import END, byte_symbols, from_merges, from_vocabulary, tokenize
from florilegium.diffusion.glide.variational import variational_term
from tests.glide.conftest import FACTS, HERE, shape_of

OUTPUT, BASE_TRACE, UPSAMPLER_TRACE = 2e-5, 2e-4, 2e-3
NEAR = {"rtol": 0, "atol": OUTPUT}


def low_resolution(network, rows=slice(None)):
    given = network.numbers["inputs/low_res"][rows]
    return interpolate(given, (network.shape.size,) * 2, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("name", ["base", "upsampler"])
@torch.no_grad()
def test_states_and_six_channels_are_the_official_ones(name, request) -> None:
    network = request.getfixturevalue(name)
    numbers = network.numbers
    states = network.text(numbers["inputs/tokens"], numbers["inputs/mask"])
    torch.testing.assert_close(states, numbers["outputs/text_states"], **NEAR)
    x = numbers["inputs/x"] if name == "base" else torch.cat([numbers["inputs/x"], low_resolution(network)], 1)
    said = network.unet(x, numbers["inputs/t"], states).sample
    torch.testing.assert_close(said, numbers["outputs/model"], **NEAR)


@pytest.mark.parametrize("kind", ["ancestral", "ddim"])
@torch.no_grad()
def test_the_base_traces_with_guidance(base, kind) -> None:
    numbers, facts = base.numbers, base.traces[kind]
    given = sampling.steps(base.shape.scheduler().config, facts["respacing"])
    assert given.timesteps == facts["timesteps"]
    states = base.text(numbers["inputs/tokens"], numbers["inputs/mask"])[:2]
    empty = base.text(numbers["inputs/tokens_empty"], numbers["inputs/mask_empty"]).expand(2, -1, -1)

    def network(x, timestep):
        text, blank = base.unet(torch.cat([x, x]), timestep, torch.cat([states, empty])).sample.split(2)
        return sampling.guided(text, blank, facts["guidance"])

    start = numbers[f"trace/{kind}/start"]
    drawn = iter(numbers.get("trace/ancestral/noise", []))
    walk = (
        sampling.ancestral(network, start, given, lambda: next(drawn))
        if kind == "ancestral"
        else sampling.ddim(network, start, given)
    )
    seen = list(walk)
    assert len(seen) == len(given)
    for i, (x, x0) in enumerate(seen):
        torch.testing.assert_close(x, numbers[f"trace/{kind}/x"][i], rtol=0, atol=BASE_TRACE)
        torch.testing.assert_close(x0, numbers[f"trace/{kind}/x0"][i], rtol=0, atol=BASE_TRACE)


@torch.no_grad()
def test_the_upsampler_s_27_steps(upsampler) -> None:
    numbers, facts = upsampler.numbers, upsampler.traces["ddim"]
    given = sampling.steps(upsampler.shape.scheduler().config, "fast27")
    assert given.timesteps == facts["timesteps"] and len(given) == 27
    states = upsampler.text(numbers["inputs/tokens"], numbers["inputs/mask"])[:1]
    low = low_resolution(upsampler, slice(1))

    def network(x, timestep):
        return upsampler.unet(torch.cat([x, low], 1), timestep, states).sample

    for i, (x, _) in enumerate(sampling.ddim(network, numbers["trace/ddim/start"], given)):
        torch.testing.assert_close(x, numbers["trace/ddim/x"][i], rtol=0, atol=UPSAMPLER_TRACE)


def test_the_training_loss_and_that_only_the_variance_learns_from_its_second_term(base) -> None:
    numbers, config = base.numbers, base.shape.scheduler().config
    said = numbers["training/model"].clone().requires_grad_(True)
    mse = mse_loss(said[:, :3], numbers["training/noise"], reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(mse, numbers["training/mse"], rtol=1e-5, atol=0)
    given = (numbers["training/x_start"], numbers["training/x_t"], numbers["training/t"])
    bits = variational_term(said, *given, config)
    torch.testing.assert_close(bits, numbers["training/vb"], rtol=1e-5, atol=1e-7)
    bits.sum().backward()
    assert said.grad[:, :3].abs().max() == 0 and said.grad[:, 3:].abs().max() > 0


@pytest.mark.parametrize("spacing", list(FACTS["other"]["timesteps"]))
def test_respacing_keeps_the_official_timesteps(spacing) -> None:
    assert sampling.respaced(spacing, 1000) == FACTS["other"]["timesteps"][spacing]


@pytest.mark.parametrize(("spacing", "message"), [("ddim999", "no whole stride"), ("600,600", "cannot keep 600")])
def test_a_spacing_that_cannot_be_had_is_named(spacing, message) -> None:
    with pytest.raises(ValueError, match=message):
        sampling.respaced(spacing, 1000)


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_token_ids_and_masks_are_the_official_ones() -> None:
    held = json.loads((HERE / "vocabulary.json").read_text())
    made = from_vocabulary(held["vocab"], [tuple(line.split(" ")) for line in held["merges"]])
    texts = json.loads((HERE / "tokens.json").read_text())["texts"]
    ids, mask = tokenize(made, [given["text"] for given in texts])
    for n, given in enumerate(texts):
        kept = given["ids"][:128]
        assert ids[n].tolist() == kept + [50256] * (128 - len(kept)), given["text"]
        assert mask[n].tolist() == [True] * len(kept) + [False] * (128 - len(kept))


def test_a_merges_file_gives_the_vocabulary_s_ids() -> None:
    """Bytes in GPT-2's order, merges in the file's order, then the end token: the ids of the published id file."""
    held = json.loads((HERE / "vocabulary.json").read_text())
    made = from_merges(["#version: 0.2", *held["merges"]])
    assert all(held["vocab"][symbol] == n for n, symbol in enumerate(byte_symbols()) if symbol in held["vocab"])
    first = held["merges"][0].replace(" ", "")
    assert made.convert_tokens_to_ids(first) == 256 and held["vocab"][first] == 256
    assert made.convert_tokens_to_ids(END) == len(made) - 1


# -- conversion --------------------------------------------------------------------------------------------------------


def official_names(shape: GlideShape) -> list[str]:
    """`official name and shape -> our names and shapes` of every U-Net weight of this shape."""
    with torch.device("meta"):
        there = {name: tuple(value.shape) for name, value in shape.unet().state_dict().items()}
    rows = []

    def row(official, size, *ours):
        told = " ".join("x".join(map(str, there.pop(name))) for name in ours)
        rows.append(f"{official} {'x'.join(map(str, size))} -> {' '.join(ours)} {told}")

    for official, ours in conversion.COPIED.items():
        for last in ("weight", "bias"):
            row(f"{official}.{last}", there[f"{ours}.{last}"], f"{ours}.{last}")
    split = {"qkv": ("to_q", "to_k", "to_v"), "encoder_kv": ("add_k_proj", "add_v_proj")}
    for official, kind, ours in conversion.places(shape):
        for last in ("weight", "bias"):
            if kind == "residual":
                for part, name in conversion.RESIDUAL.items():
                    if f"{ours}.{name}.{last}" in there:
                        row(f"{official}.{part}.{last}", there[f"{ours}.{name}.{last}"], f"{ours}.{name}.{last}")
                continue
            tail = (1,) if last == "weight" else ()
            for part, names in split.items():
                out, *rest = there[f"{ours}.{names[0]}.{last}"]
                row(
                    f"{official}.{part}.{last}",
                    (len(names) * out, *rest, *tail),
                    *(f"{ours}.{n}.{last}" for n in names),
                )
            row(f"{official}.norm.{last}", there[f"{ours}.group_norm.{last}"], f"{ours}.group_norm.{last}")
            size = (*there[f"{ours}.to_out.0.{last}"], *tail)
            row(f"{official}.proj_out.{last}", size, f"{ours}.to_out.0.{last}")
    assert not there, f"no official name for {sorted(there)[:3]}"
    return sorted(rows)


@pytest.mark.parametrize(
    ("shape", "count", "parameters", "digest"),
    [
        (BASE, 586, 308_728_902, "3ca3915a768adb307d4efa23d4c64fa0592c63386e8e59a0cc71eca590e9b48f"),
        (UPSAMPLER, 600, 322_059_462, "bf4edc7d77f0eebd18edef1e85841659662a0f78df6b86ab2a05bd3371ebdeb9"),
    ],
)
def test_the_key_table_of_the_published_models(shape, count, parameters, digest) -> None:
    rows = official_names(shape)
    assert len(rows) == count
    assert hashlib.sha256("\n".join(rows).encode()).hexdigest() == digest
    with torch.device("meta"):
        assert sum(p.numel() for p in shape.unet().parameters()) == parameters
        assert sum(p.numel() for p in shape.text_encoder().parameters()) == 76_301_824


@pytest.mark.parametrize("name", ["tiny_base", "tiny_upsampler", "full_base", "full_upsampler"])
def test_the_unet_has_the_configuration_that_carries_glide(name) -> None:
    tiny, kind = name.split("_")
    shape = shape_of(kind) if tiny == "tiny" else {"base": BASE, "upsampler": UPSAMPLER}[kind]
    with torch.device("meta"):
        config = dict(shape.unet().config)
    for key, value in FACTS["unet_config"][name].items():
        held = config[key]
        assert (list(held) if isinstance(held, (list, tuple)) else held) == value, key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("out.2.bias"), "conv_out.bias is missing in the checkpoint"),
        (lambda w: w.update(surprise=torch.zeros(1)), "surprise belongs to no part of GLIDE"),
        (lambda w: w.update({"time_embed.0.bias": torch.zeros(3)}), r"linear_1.bias is \(3,\) in the checkpoint"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(base, change, message) -> None:
    weights = dict(base.weights)
    change(weights)
    with pytest.raises(ValueError, match=message):
        conversion.modules(weights, base.shape)


def test_files_convert_to_a_pipeline_and_others_are_refused(base, upsampler, tmp_path) -> None:
    merges = tmp_path / "merges.txt"
    merges.write_text("")
    small = {name: value for name, value in base.weights.items()}
    small["token_embedding.weight"] = torch.zeros(257, 40)
    torch.save(small, tmp_path / "base.pt")
    up = dict(upsampler.weights) | {"token_embedding.weight": torch.zeros(257, 40)}
    torch.save(up, tmp_path / "up.pt")
    shapes = (replace(base.shape, vocabulary=257), replace(upsampler.shape, vocabulary=257))
    given = (tmp_path / "base.pt", tmp_path / "up.pt", merges, tmp_path / "glide")
    conversion.convert(*given, shapes=shapes)
    command = ["convert", "glide", str(tmp_path / "base.pt"), str(tmp_path / "up.pt"), str(tmp_path / "full")]
    options = main.parse([*command, "--vocabulary", str(merges)])
    with pytest.raises(options.errors, match="the vocabulary has 257 entries, the model 50257"):  # published sizes
        options.command(options)
    assert json.loads((tmp_path / "glide/model_index.json").read_text())["_class_name"] == "GlidePipeline"
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="is no checkpoint of tensors"):
        conversion.convert(tmp_path / "broken.pt", None, merges, tmp_path / "other", shapes=shapes)
    with pytest.raises(ValueError, match="no checkpoint"):
        conversion.convert(tmp_path / "none.pt", None, merges, tmp_path / "other", shapes=shapes)
    with pytest.raises(ValueError, match="has 257 entries, the model 101"):
        conversion.convert(tmp_path / "base.pt", None, merges, tmp_path / "other", shapes=(base.shape, upsampler.shape))
