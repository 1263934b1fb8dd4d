"""Captioners of every kind from directories in the hub's layout: GIT, an encoder-decoder, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from florilegium.config.composition import SettingsError
from florilegium.config.diffusion import CaptionSettings
from florilegium.contract.tiny_models import tokenizer
from florilegium.diffusion.captions import Captioner, check_room
from florilegium.resources import Resources
from tests.full.tiny_inputs import SMALL, write_backbones

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"a red blue cat dog tree on the".split()]
FAR = dict(initializer_range=1.0)  # so that pictures differ in what is said of them
VISION = dict(**SMALL, **FAR, image_size=16, patch_size=8)
POSITIONS = 12
SIZE = {"height": 16, "width": 16}


def write_git(folder: Path) -> str:
    """As microsoft/git-base lies on the hub: its own processor, BERT's words."""
    ids = dict(bos_token_id=2, eos_token_id=3, pad_token_id=0)
    config = transformers.GitConfig(
        vision_config=VISION, vocab_size=len(WORDS), **SMALL, max_position_embeddings=POSITIONS, **ids, **FAR
    )
    transformers.GitForCausalLM(config).save_pretrained(folder)
    pixels = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SIZE)
    speller = transformers.BertTokenizer({word: i for i, word in enumerate(WORDS)})
    transformers.GitProcessor(pixels, speller).save_pretrained(folder)
    return str(folder)


def write_encoder_decoder(folder: Path) -> str:
    """As nlpconnect/vit-gpt2-image-captioning lies there: an image processor and a tokenizer, and none of both."""
    speller = tokenizer()
    speller.model_max_length = 1 << 30
    begin, end = speller.bos_token_id, speller.eos_token_id
    ids = dict(bos_token_id=begin, eos_token_id=end)
    decoder = transformers.GPT2Config(
        vocab_size=len(speller),
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=POSITIONS,
        add_cross_attention=True,
        **ids,
        **FAR,
    )
    made = transformers.VisionEncoderDecoderModel(
        encoder=transformers.ViTModel(transformers.ViTConfig(**VISION)), decoder=transformers.GPT2LMHeadModel(decoder)
    )
    for config in (made.config, made.generation_config):
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = begin, None, end
    made.save_pretrained(folder)
    transformers.ViTImageProcessor(size=SIZE).save_pretrained(folder)
    speller.save_pretrained(folder)
    return str(folder)


WRITERS = {"git": write_git, "encoder-decoder": write_encoder_decoder}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {kind: write(tmp_path_factory.mktemp("captioners") / kind) for kind, write in WRITERS.items()}


def pictures(count: int = 3, side: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_captioner_says_what_its_model_says(kind, places) -> None:
    """Greedy search by hand, on the pixels of the checkpoint's own processor."""
    place, images = places[kind], pictures()
    said = Captioner(place, CaptionSettings(max_tokens=5, min_tokens=5, drop=None))(images)
    plain = transformers.AutoModelForImageTextToText.from_pretrained(place).eval()
    spell = transformers.AutoTokenizer.from_pretrained(place)
    pixels = transformers.AutoImageProcessor.from_pretrained(place)(list(images), return_tensors="pt").pixel_values
    begin = spell.cls_token_id if kind == "git" else spell.bos_token_id
    ids = torch.full((len(images), 1), begin)
    for _ in range(5):
        given = {"input_ids" if kind == "git" else "decoder_input_ids": ids}
        with torch.no_grad():
            scores = plain(pixel_values=pixels, use_cache=False, **given).logits[:, -1]
        scores[:, spell.sep_token_id if kind == "git" else spell.eos_token_id] = -torch.inf
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
    assert said == [" ".join(text.split()) for text in spell.batch_decode(ids, skip_special_tokens=True)]
    assert len(set(said)) > 1 and all(said)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_prefix_begins_every_caption_and_the_batch_changes_nothing(kind, places) -> None:
    settings = dict(prefix="the cat", max_tokens=3, drop=None, beams=2)
    one, other = (Captioner(places[kind], CaptionSettings(**settings, batch=b)) for b in (1, 64))
    said = one(pictures(side=40))
    assert said == other(pictures(side=40)) and all(text.startswith("the cat") for text in said)


@pytest.mark.parametrize(("kind", "room"), [("git", 12 + 1 - 3), ("encoder-decoder", 12 + 1 - 7)])
def test_its_positions_are_the_limit(kind, room, places) -> None:
    """12 of them: "[CLS] the cat" is 3 tokens, and 7 for one that spells; the last said is not read again."""
    words = "the cat"
    fits = CaptionSettings(prefix=words, max_tokens=room, min_tokens=room)
    assert len(Captioner(places[kind], fits)(pictures(1))) == 1
    check_room(places[kind], fits)
    over = CaptionSettings(prefix=words, max_tokens=room + 1)
    for late in (lambda: check_room(places[kind], over), lambda: Captioner(places[kind], over)):
        with pytest.raises(SettingsError, match=f"max_tokens is {room + 1}, .* has room for {room}$"):
            late()


def test_a_run_takes_them_from_its_settings(places, toy_conf) -> None:
    caption = Resources(toy_conf(f"diffusion.captioner={places['git']}", "diffusion.captions.max_tokens=4")).captioner()
    assert len(caption(pictures())) == 3


def test_a_model_that_describes_no_picture_is_one_line(tmp_path) -> None:
    place = write_backbones(tmp_path)["vit"]
    with pytest.raises(SettingsError, match="diffusion.captioner: .* of type vit; a captioner is of type blip"):
        Captioner(place)


def test_one_that_needs_a_text_beside_the_picture_is_refused_at_once(places, monkeypatch) -> None:
    """Any kind that is not known is tried on one picture."""
    from florilegium.diffusion import captions

    monkeypatch.setattr(captions, "KNOWN", ("blip",))
    assert len(Captioner(places["git"], CaptionSettings(max_tokens=4))(pictures())) == 3  # it can

    def refuses(self, **given):
        raise ValueError("You have to specify input_ids\nor else")

    monkeypatch.setattr(transformers.GitForCausalLM, "generate", refuses)
    with pytest.raises(
        SettingsError, match="describes no picture by itself .ValueError: You have to specify"
    ) as raised:
        Captioner(places["git"], CaptionSettings(max_tokens=4))
    assert "\n" not in str(raised.value)
    assert json.loads(Path(places["git"], "config.json").read_text())["model_type"] == "git"
