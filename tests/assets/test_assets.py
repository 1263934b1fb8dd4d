"""The embedded data and mini models: each loads through its standard class, and the facts the cards state hold."""

import json
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline
from safetensors import safe_open
from torch.nn.functional import interpolate
from transformers import (
    BlipForConditionalGeneration,
    BlipProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    ResNetForImageClassification,
)

from florilegium.diffusion import threads

ASSETS = Path(__file__).parents[2] / "assets"
EMOJI, FASHION, MODELS = ASSETS / "data/emoji", ASSETS / "data/fashion", ASSETS / "models"
STYLES = {
    "public": {"noto", "noto-v1", "fluent", "fxemoji"},
    "private": {"twemoji", "openmoji", "fluent-flat", "emojione"},
}
PROMPT = "A picture of a fruit."


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    with threads.limited(2):
        yield


@pytest.fixture(scope="module")
def emoji() -> dict[str, datasets.Dataset]:
    return {s: datasets.Dataset.from_parquet(str(EMOJI / f"{s}.parquet")) for s in ("train", "validation", "test")}


@pytest.fixture(scope="module")
def fashion() -> dict[str, datasets.Dataset]:
    return {s: datasets.Dataset.from_parquet(str(FASHION / f"{s}.parquet")) for s in ("train", "validation", "test")}


@pytest.fixture(scope="module")
def pixels(emoji) -> torch.Tensor:
    """64 held-out pictures, 64 x 3 x 32 x 32 in [-1, 1]."""
    public = emoji["validation"].filter(lambda part: part == "public", input_columns="part").select(range(0, 192, 3))
    stacked = np.stack([np.asarray(image) for image in public["image"]])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div(127.5).sub(1)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    found = DiffusionPipeline.from_pretrained(MODELS / "mini-sd", torch_dtype=torch.float32)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def clip():
    found = open_clip.create_model(f"local-dir:{MODELS / 'mini-clip'}", precision="fp32")
    return found.eval()


def test_load_dataset_gives_three_splits(tmp_path):
    found = datasets.load_dataset(str(EMOJI), cache_dir=str(tmp_path))
    assert set(found) == {"train", "validation", "test"}
    assert found["train"][0]["image"].size == (32, 32)


def test_emoji_columns_and_pictures(emoji):
    rows = emoji["train"]
    assert rows.column_names == ["id", "image", "text", "tags", "label", "concept", "style", "part"]
    assert {image.mode for image in rows[:50]["image"]} == {"RGB"}
    apple = next(row for row in rows if row["concept"] == "1F34E") if "1F34E" in rows["concept"] else None
    assert apple is None or (apple["text"], apple["label"]) == ("red apple", 6)


def test_emoji_classes_are_the_24_and_all_are_in_every_split_and_part(emoji):
    names = [row["name"] for row in json.loads((EMOJI / "classes.json").read_text())]
    assert len(names) == 24 and names[0] == "mammal" and names[2] == "sea animal" and names[23] == "heart"
    for rows in emoji.values():
        for part in ("public", "private"):
            counts = Counter(y for y, p in zip(rows["label"], rows["part"], strict=True) if p == part)
            assert set(counts) == set(range(24))


def test_no_concept_stands_in_two_splits(emoji):
    bases = {split: {code.split("-")[0] for code in rows["concept"]} for split, rows in emoji.items()}
    assert not bases["train"] & bases["validation"]
    assert not bases["train"] & bases["test"]
    assert not bases["validation"] & bases["test"]
    total = sum(map(len, bases.values()))
    assert len(bases["train"]) / total == pytest.approx(0.7, abs=0.03)
    assert len(bases["test"]) / total == pytest.approx(0.2, abs=0.03)


def test_ids_are_unique_and_styles_belong_to_their_part(emoji):
    ids = [i for rows in emoji.values() for i in rows["id"]]
    assert len(set(ids)) == len(ids)
    for rows in emoji.values():
        assert all(s in STYLES[p] for s, p in zip(rows["style"], rows["part"], strict=True))
    assert set(emoji["train"]["style"]) == STYLES["public"] | STYLES["private"]


def test_fashion_is_balanced_private_and_rgb(fashion):
    assert {split: len(rows) for split, rows in fashion.items()} == {
        "train": 12_000,
        "validation": 2_000,
        "test": 4_000,
    }
    assert set(Counter(fashion["train"]["label"]).values()) == {1_200}
    assert set(Counter(fashion["validation"]["label"]).values()) == {200}
    assert set(fashion["train"]["part"]) == {"private"}
    names = [row["name"] for row in json.loads((FASHION / "classes.json").read_text())]
    row = fashion["test"][0]
    assert row["text"] == names[row["label"]] == "ankle boot"  # the first of the official test images
    assert row["image"].mode == "RGB" and row["image"].size == (32, 32)


def test_cards_name_every_source_and_licence():
    card = (EMOJI / "README.md").read_text()
    for package in (
        "noto",
        "noto-v1",
        "fluent-emoji",
        "fxemoji",
        "fluent-emoji-flat",
        "twemoji",
        "openmoji",
        "emojione",
    ):
        assert f"`@iconify-json/{package}`" in card
    for licence in ("Apache-2.0", "MIT", "CC-BY-4.0", "CC-BY-SA-4.0", "emojibase-data"):
        assert licence in card
    fashion_card = (FASHION / "README.md").read_text()
    assert "MIT" in fashion_card and "dataset-fashion-mnist" in fashion_card
    assert (MODELS / "README.md").exists()


def test_assets_stay_small_and_hold_no_pickles():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 60_000_000
    assert {path.suffix for path in files} <= {".parquet", ".json", ".md", ".safetensors", ".png", ".txt"}


def test_weights_are_stored_in_half_precision():
    for path in MODELS.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        assert "F32" not in kinds, path.name


@torch.no_grad()
def test_vae_rebuilds_held_out_pictures(pixels):
    vae = AutoencoderKL.from_pretrained(MODELS / "mini-sd/vae", torch_dtype=torch.float32).eval()
    latents = vae.encode(pixels).latent_dist.mode()
    assert latents.shape == (64, 4, 8, 8)
    assert (latents * vae.config.scaling_factor).std().item() == pytest.approx(1, abs=0.25)
    error = (vae.decode(latents).sample.clamp(-1, 1) - pixels).square().mean((1, 2, 3))
    assert (10 * torch.log10(4 / error)).mean().item() >= 22


def test_pipeline_draws_a_picture_and_the_seed_decides_which(pipeline):
    assert isinstance(pipeline, StableDiffusionPipeline)

    def drawn(seed: int) -> np.ndarray:
        told = {"num_inference_steps": 6, "guidance_scale": 3.0, "height": 32, "width": 32, "output_type": "np"}
        return pipeline(PROMPT, generator=torch.Generator().manual_seed(seed), **told).images[0]

    first = drawn(0)
    assert first.shape == (32, 32, 3) and np.isfinite(first).all() and first.std() > 0.01
    assert np.array_equal(first, drawn(0))
    assert not np.allclose(first, drawn(1), atol=0.05)


@torch.no_grad()
def test_the_text_encoder_is_the_clip_text_tower(clip):
    prompts = [PROMPT, "red apple, fruit, ripe", "", "a picture of an ankle boot"]
    ours = open_clip.get_tokenizer(f"local-dir:{MODELS / 'mini-clip'}")(prompts)
    tokenizer = CLIPTokenizer.from_pretrained(MODELS / "mini-sd/tokenizer")
    theirs = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(ours, theirs)
    x = clip.token_embedding(ours) + clip.positional_embedding
    ours_BTD = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))
    encoder = CLIPTextModel.from_pretrained(MODELS / "mini-sd/text_encoder", dtype=torch.float32).eval()
    output = encoder(theirs)
    assert torch.allclose(ours_BTD, output.last_hidden_state, atol=1e-4)
    pooled = output.pooler_output @ clip.text_projection
    assert torch.allclose(clip.encode_text(ours), pooled, atol=1e-4)


def test_clip_preprocessing_is_in_its_configuration(emoji):
    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{MODELS / 'mini-clip'}")
    picture = preprocess(emoji["test"][0]["image"])
    assert picture.shape == (3, 64, 64) and picture.min() >= -1.01 and picture.max() <= 1.01


@torch.no_grad()
def test_clip_tells_held_out_concepts_far_above_chance(clip, emoji):
    names = [row["name"] for row in json.loads((EMOJI / "classes.json").read_text())]
    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{MODELS / 'mini-clip'}")
    rows = emoji["validation"].filter(lambda part: part == "public", input_columns="part")
    texts = open_clip.get_tokenizer(f"local-dir:{MODELS / 'mini-clip'}")([f"A picture of a {name}." for name in names])
    image_ND = clip.encode_image(torch.stack([preprocess(image) for image in rows["image"]]), normalize=True)
    guess_N = (image_ND @ clip.encode_text(texts, normalize=True).T).argmax(1)
    assert (guess_N == torch.tensor(rows["label"])).float().mean() >= 0.3  # chance is 0.04


def test_captions_are_english(emoji):
    processor = BlipProcessor.from_pretrained(MODELS / "mini-captioner")
    model = BlipForConditionalGeneration.from_pretrained(MODELS / "mini-captioner", dtype=torch.float32).eval()
    pictures = emoji["test"][:8]["image"]
    told = model.generate(**processor(images=pictures, return_tensors="pt"), max_new_tokens=20)
    captions = processor.batch_decode(told, skip_special_tokens=True)
    assert all(caption.startswith("a picture of") and len(caption.split()) >= 4 for caption in captions), captions


@torch.no_grad()
@pytest.mark.parametrize(("judge", "classes", "bar"), [("emoji-private", 24, 0.4), ("fashion", 10, 0.85)])
def test_judges_know_held_out_pictures(judge, classes, bar, emoji, fashion):
    folder = MODELS / "judges" / judge
    model = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rows = fashion["validation"].select(range(0, 2000, 8)) if judge == "fashion" else emoji["validation"]
    if judge != "fashion":
        rows = rows.filter(lambda part: part == judge.split("-")[1], input_columns="part")
    images = torch.from_numpy(np.stack([np.asarray(image) for image in rows["image"]])).permute(0, 3, 1, 2)
    size = json.loads((folder / "preprocessor_config.json").read_text())["size"]
    shape = (size["height"], size["width"])
    logits = model(interpolate(images.float().div(127.5).sub(1), shape, mode="bilinear")).logits
    assert logits.shape == (len(rows), classes)
    assert (logits.argmax(1) == torch.tensor(rows["label"])).float().mean() >= bar
