"""The feature cache: what is found again, what is computed again, what is refused. Tiny models, no downloads."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from florilegium.contract.tiny_models import SIDE
from florilegium.data import stored_images
from florilegium.diffusion.cache import CacheError, FeatureCache, Request
from florilegium.diffusion.features import FeatureExtractor
from florilegium.runs import files as atomic
from tests.test_features import IDS, IMAGES, PROMPTS, WHICH, extractor

PROJECTION = extractor().fit(IMAGES, IDS, 0)


@pytest.fixture
def heard(caplog, monkeypatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    return caplog


def ask(
    cache: FeatureCache,
    x: FeatureExtractor,
    rows: Tensor | slice = slice(None),
    which: Tensor = WHICH,
    prompts: list[str] = PROMPTS,
    seed: int = 0,
    **more: object,
) -> Tensor:
    return cache.features(x, IMAGES[rows], IDS[rows], prompts, which[rows], PROJECTION, seed, **more)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_a_hit_is_bit_equal_and_reads_no_model(tmp_path: Path) -> None:
    first, second = extractor(), extractor()
    cold, warm = FeatureCache(tmp_path), FeatureCache(tmp_path)
    computed = ask(cold, first)
    assert (cold.hits, cold.misses, first.passes) == (0, 36, 36)
    found = ask(warm, second)
    assert (warm.hits, warm.misses, second.passes) == (36, 0, 0) and "pipe" not in vars(second)
    assert torch.equal(computed, found) and found.dtype == torch.float16 and tuple(found.shape) == (12, 3, 8)
    assert torch.equal(found, first.conditional(IMAGES, IDS, PROMPTS, WHICH, PROJECTION, 0).half())
    assert len(files(tmp_path)) == 1


def test_images_in_a_file_are_the_same_request(tmp_path: Path, monkeypatch) -> None:
    """The key of images in memory is that of the released versions, whose files stay good."""
    pixels = stored_images.Pictures(SIDE, limit=1)
    for image in IMAGES:
        pixels.append(image.permute(1, 2, 0).numpy())
    in_file, cache = pixels.images(), FeatureCache(tmp_path)
    assert isinstance(in_file, stored_images.StoredImages)
    monkeypatch.setattr("florilegium.diffusion.cache.BLOCK", 5)  # 12 images are three reads
    computed = ask(cache, extractor())
    found = cache.features(extractor(), in_file, IDS, PROMPTS, WHICH, PROJECTION, 0)
    assert torch.equal(found, computed) and (cache.hits, cache.misses) == (36, 36) and len(files(tmp_path)) == 1
    request = Request(extractor(), IMAGES, IDS, PROMPTS, WHICH, PROJECTION, 0)
    given = json.dumps([PROMPTS, list(IMAGES.shape), list(WHICH.shape)]).encode()
    content = b"".join(x.numpy().tobytes() for x in (IMAGES, IDS, WHICH))
    assert request.key == hashlib.sha256(request.version.encode() + given + content).hexdigest()[:40]
    alone = replace(request, images=in_file.pick(torch.arange(12).flip(0)))
    assert alone.key != request.key == replace(request, images=in_file).key
    assert (replace(request, images=in_file).names() == request.names()).all()
    other = FeatureCache(tmp_path / "other").features(extractor(), in_file, IDS, PROMPTS, WHICH, PROJECTION, 0)
    assert torch.equal(other, computed)


def test_what_is_found_stands_in_the_files_own_pages(tmp_path: Path) -> None:
    found = ask(FeatureCache(tmp_path), extractor())
    pages = (
        [
            line.split()[0].split("-")
            for line in Path("/proc/self/maps").read_text().splitlines()
            if str(tmp_path) in line
        ]
        if Path("/proc/self/maps").exists()
        else pytest.skip("no /proc")
    )
    assert any(int(low, 16) <= found.data_ptr() < int(high, 16) for low, high in pages)


def test_anything_that_changes_features_is_another_request(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    ask(cache, extractor())
    assert cache.misses == 36
    others = [
        lambda: ask(cache, extractor(timestep=100)),
        lambda: ask(cache, extractor(pool="rms")),
        lambda: ask(cache, extractor(), seed=1),
        lambda: ask(cache, extractor(), condition=torch.ones(12, 16)),
        lambda: ask(cache, extractor(), prompts=["x", "y", "z"]),
        lambda: cache.features(extractor(), IMAGES.flip(3), IDS, PROMPTS, WHICH, PROJECTION, 0),
        lambda: cache.features(extractor(), IMAGES, IDS + 1, PROMPTS, WHICH, PROJECTION, 0),
        lambda: cache.features(extractor(), IMAGES, IDS, PROMPTS, WHICH, extractor().fit(IMAGES, IDS, 1), 0),
    ]
    for n, other in enumerate(others, 2):
        other()
        assert (cache.hits, cache.misses) == (0, 36 * n)


def test_rows_are_shared_between_requests(tmp_path: Path) -> None:
    """Another partition asks for some of the same images, in another order, and for one prompt more."""
    cache, x = FeatureCache(tmp_path), extractor()
    ask(cache, x)
    rows = torch.tensor([7, 3, 5])
    again = ask(cache, x, rows)
    assert (cache.hits, cache.misses) == (9, 36)
    assert torch.equal(again, ask(cache, x)[rows]) and (cache.hits, cache.misses) == (9 + 36, 36)
    more = torch.tensor([[0, 3, 3]]).repeat(12, 1)
    wider = ask(cache, x, rows, more, [*PROMPTS, "a photo of a bird"])
    assert (cache.hits, cache.misses, x.passes) == (45 + 3, 36 + 6, 36 + 3)  # the doubled prompt is computed once
    assert torch.equal(wider[:, 0], again[:, 0]) and torch.equal(wider[:, 1], wider[:, 2])


def test_axes_of_a_batch_are_not_shared_between_requests(tmp_path: Path) -> None:
    cache, x = FeatureCache(tmp_path), extractor(pca="per_batch")
    whole = ask(cache, x)
    assert torch.equal(whole, x.conditional(IMAGES, IDS, PROMPTS, WHICH, PROJECTION, 0).half())
    ask(cache, x, slice(0, 4))
    assert (cache.hits, cache.misses) == (0, 36 + 12)
    assert torch.equal(whole, ask(cache, x)) and cache.hits == 36


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "torn":
        data = data[: len(data) // 2]
    elif how == "empty":
        data = bytearray()
    else:
        data[-40 if how == "altered" else 12] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    "how, said",
    [
        ("torn", "cannot be read"),
        ("empty", "cannot be read"),
        ("altered", "altered or is torn"),
        ("broken header", "cannot be read"),
    ],
)
def test_a_damaged_file_is_computed_again_and_said(tmp_path: Path, how: str, said: str, heard) -> None:
    good = ask(FeatureCache(tmp_path), extractor()).clone()
    damage(files(tmp_path)[0], how)
    cache = FeatureCache(tmp_path)
    again = ask(cache, extractor())
    assert torch.equal(good, again) and (cache.hits, cache.misses) == (0, 36)
    assert heard.text.count(said) >= 1 and files(tmp_path)[0].name in heard.text
    healed = FeatureCache(tmp_path)
    assert torch.equal(good, ask(healed, extractor())) and healed.hits == 36


def test_a_damaged_file_lends_no_rows(tmp_path: Path) -> None:
    cache, x = FeatureCache(tmp_path), extractor()
    good = ask(cache, x)[:3].clone()
    damage(files(tmp_path)[0], "altered")
    assert torch.equal(good, ask(cache, x, slice(0, 3))) and (cache.hits, cache.misses) == (0, 36 + 9)


def test_another_models_file_is_refused_by_name(tmp_path: Path) -> None:
    x = extractor()
    ask(FeatureCache(tmp_path), x)
    path = files(tmp_path)[0]
    cache = FeatureCache(tmp_path)
    assert torch.equal(cache.open(path.stem, x.version).view(12, 3, 8), ask(cache, x))
    with pytest.raises(CacheError, match=f"{path.name} holds features of sd {x.version[:12]}, not of version 0000"):
        cache.open(path.stem, "0000")
    with pytest.raises(FileNotFoundError, match="no whole features"):
        cache.open("f" * 40, x.version)
    tensors, meta = atomic.load(path)
    atomic.save(path, tensors, {**meta, "model": "another-sd", "extractor": "beef" * 8})
    with pytest.raises(CacheError, match="holds features of another-sd beefbeefbeef, not of version"):
        ask(FeatureCache(tmp_path), x)


def test_a_computation_that_dies_is_taken_up_where_it_was(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("florilegium.diffusion.cache.BLOCK", 4)
    x, cache = extractor(), FeatureCache(tmp_path)
    pairs, calls = x.pairs, []

    def dying(*given: object) -> Tensor:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return pairs(*given)

    monkeypatch.setattr(x, "pairs", dying)
    with pytest.raises(KeyboardInterrupt):
        ask(cache, x)
    assert [path.name.startswith("part-") for path in files(tmp_path)] == [True, True]
    again, told = FeatureCache(tmp_path), []
    found = ask(again, extractor(), progress=lambda *news: told.append(news))
    assert (again.hits, again.misses) == (24, 12) and told[-1] == (12, 12)
    assert len(files(tmp_path)) == 1  # the parts are gone
    expected = x.conditional(IMAGES, IDS, PROMPTS, WHICH, PROJECTION, 0)
    assert torch.allclose(found.float(), expected, rtol=2e-3, atol=1e-2)


def test_features_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch) -> None:
    x = extractor()
    monkeypatch.setattr(x, "pairs", lambda *given: torch.full((36, 8), 1e6))
    with pytest.raises(ValueError, match="features of sd are NaN or too large for float16"):
        ask(FeatureCache(tmp_path), x)
    assert not files(tmp_path)
