"""Forms of arrays on the wire: numbers worked by hand, bytes at the paper's sizes, and nothing broken gets through."""

from dataclasses import fields
from functools import cache

import numpy as np
import pytest
import torch
from flwr.app import Array
from sklearn.datasets import load_sample_images

from florilegium import preflight
from florilegium.config.errors import SettingsError
from florilegium.config.wire import WireSettings
from florilegium.methods.fedmmkt.costs import MB, modelled
from florilegium.privacy.listing import listing
from florilegium.protocol import codec, forms, pixels
from florilegium.protocol.codec import Header
from florilegium.protocol.forms import EXACT, Form
from florilegium.protocol.payloads import Answers, Features, Logits, Samples, Targets
from florilegium.protocol.validation import WireError
from tests.test_every_method import faults, lines, toy
from tests.test_wire import answers
from tests.tiers import first

HEADER = Header("method", 3, 2)
LN2 = 0.6931472


def form(**wire):
    return Form(WireSettings(**wire), width=6, seed=1)


def there_and_back(payload, by, **bounds):
    return codec.unpack(codec.pack(payload, HEADER, form=by), type(payload), bounds=bounds, form=by)


def field(cls, name):
    return next(f for f in fields(cls) if f.name == name)


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_a_row_of_int8_is_127_steps_of_its_largest_value():
    x = torch.tensor([[1.27, -0.5, 0.004, 0.006], [0.0, 0.0, 0.0, 0.0], [-254.0, 127.0, 1.0, 0.9]])
    parts = forms.written("x", x, "int8")
    assert parts["x"].tolist() == [[127, -50, 0, 1], [0, 0, 0, 0], [-127, 64, 0, 0]]  # 127 / 2 = 63.5 -> 64, even
    assert parts["x.scale"].tolist() == pytest.approx([0.01, 0.0, 2.0])
    back = forms.rows("x", {name: Array(part) for name, part in parts.items()}, "int8")
    assert back[0].tolist() == pytest.approx([1.27, -0.5, 0.0, 0.01]) and back[1].tolist() == [0.0] * 4
    assert np.abs(back - x.numpy()).max(-1).tolist() <= [0.005 + 1e-6, 0.0, 1.0 + 1e-6]  # half a step


def test_float16_keeps_eleven_bits_and_cuts_what_it_cannot_hold():
    parts = forms.written("x", torch.tensor([[1.0, 1.0 + 2**-10, 1.0 + 2**-12, 1e6, -1e6]]), "float16")
    assert parts["x"].dtype == np.float16
    assert parts["x"].tolist() == [[1.0, 1.0 + 2**-10, 1.0, 65504.0, -65504.0]]


def test_the_rest_of_the_probability_is_spread_evenly():
    # softmax: 1/2, 1/4, 1/8, 1/16, 1/16; the top two are kept, 1/4 is left for three classes
    p = torch.tensor([[1 / 16, 1 / 2, 1 / 8, 1 / 4, 1 / 16]])
    values, classes = forms.highest(p.log() + 5, 2)  # scores are known up to a constant, which stays
    assert classes.tolist() == [[1, 3]]
    assert values.tolist()[0] == pytest.approx([5 - LN2, 5 - 2 * LN2, 5 + float(np.log(1 / 12))], abs=1e-5)
    back = forms.spread(values, classes, 5)
    assert back.softmax(-1).tolist()[0] == pytest.approx([1 / 12, 1 / 2, 1 / 12, 1 / 4, 1 / 12], abs=1e-6)
    again, same = forms.highest(back, 2)
    assert torch.allclose(again, values, atol=1e-6) and torch.equal(same, classes)


def test_a_projection_is_alike_on_both_sides_and_keeps_its_subspace():
    r_PD = forms.projection(6, 4, 1)
    forms.projection.cache_clear()
    assert torch.equal(r_PD, forms.projection(6, 4, 1)) and not torch.equal(r_PD, forms.projection(6, 4, 2))
    assert torch.allclose(r_PD @ r_PD.T, torch.eye(4), atol=1e-6)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    f, by = field(Answers, "representations"), form(projection=4)
    sent = by.write(f, x)
    assert sent["representations"].shape == (3, 4)
    once = torch.from_numpy(by.read(f, {name: Array(a) for name, a in sent.items()}, {}))
    assert torch.allclose(once, x @ r_PD.T @ r_PD, atol=1e-6)
    twice = by.read(f, {name: Array(a) for name, a in by.write(f, once).items()}, {})
    assert torch.allclose(torch.from_numpy(twice), once, atol=1e-6)


def test_unit_vectors_are_projected_piece_by_piece_and_stay_unit_vectors():
    x = torch.nn.functional.normalize(torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    back = there_and_back(Features(torch.arange(2), x.flatten(-2), torch.zeros(2, 0)), form(projection=4))
    assert back.image.shape == (2, 12) and back.text.shape == (2, 0)
    assert torch.allclose(back.image.unflatten(-1, (2, 6)).norm(dim=-1), torch.ones(2, 2))
    r_PD = forms.projection(6, 4, 1)
    cosine = torch.cosine_similarity(back.image.unflatten(-1, (2, 6)), x @ r_PD.T @ r_PD, dim=-1)
    assert torch.allclose(cosine, torch.ones(2, 2))
    with pytest.raises(WireError, match="image is 5 wide, with wire.projection a multiple of 6"):
        codec.pack(Features(torch.arange(2), torch.zeros(2, 5), torch.zeros(2, 0)), HEADER, form=form(projection=4))


def test_compact_numbers_come_back_as_they_were():
    many = torch.arange(400) + 40_000
    by = form(compact=True)
    sent = by.write(field(Answers, "ids"), many)["ids"]
    assert sent.dtype == np.int32 and by.write(field(Answers, "ids"), many - 39_900)["ids"].dtype == np.int16
    assert by.write(field(Answers, "labels"), torch.tensor([0, 255]))["labels"].dtype == np.uint8
    given = answers(confidence=torch.tensor([0.25, 0.5, 1.0, 3.0]))
    back = there_and_back(given, by, N=4, C=5, D=6, A=0)
    for name, value in vars(given).items():
        assert torch.equal(getattr(back, name), value) and getattr(back, name).dtype == value.dtype


@pytest.mark.parametrize(
    "wire, error",
    [
        ({"vectors": "float16"}, 2**-10),
        ({"vectors": "int8"}, 0.02),
        ({"vectors": "int8", "compact": True}, 0.02),
    ],
)
def test_answers_come_back_about_as_they_were(wire, error):
    given = answers(representations=torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).clamp(-2, 2))
    back = there_and_back(given, form(**wire), N=4, C=5, D=6, A=0)
    assert (back.representations - given.representations).abs().max() <= error
    assert torch.equal(back.labels, given.labels) and torch.equal(back.ids, given.ids)


def test_the_exact_form_writes_the_bytes_that_it_always_wrote():
    record = codec.pack(answers(), HEADER, form=form())
    assert [(name, a.dtype) for name, a in record["arrays"].items()] == [
        ("ids", "int64"),
        ("labels", "int64"),
        ("confidence", "float32"),
        ("representations", "float32"),
        ("augmented", "float32"),
    ]
    assert codec.size(record) == codec.size(codec.pack(answers(), HEADER))


def test_the_highest_score_stays_the_highest_in_every_form():
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(0)) * 4
    for wire in ({"top": 3}, {"top": 29}, {"top": 30}, {"top": 3, "vectors": "float16", "compact": True}):
        back = there_and_back(Logits(torch.arange(200), logits), form(**wire), C=30)
        assert torch.equal(back.logits.argmax(-1), logits.argmax(-1)), wire
    assert torch.equal(back.ids, torch.arange(200))


def test_scores_at_the_edge_of_their_range_are_not_refused():
    logits = torch.tensor([[1e4, -1e4, 1e4], [-1e4, -1e4, -1e4]])
    for wire in ({"vectors": "int8"}, {"vectors": "float16"}, {"top": 1}, {"top": 2, "vectors": "int8"}):
        back = there_and_back(Logits(torch.arange(2), logits), form(**wire), C=3)
        assert back.logits.abs().max() <= 1e4


# -- bytes at the paper's sizes ----------------------------------------------------------------------------------------

N, D, C = 800, 768, 102  # Table X of arXiv 2510.12254; an image has 64 x 64 pixels, a text 240 bytes
SMALL = {"vectors": "int8", "top": 10, "compact": True, "images": "webp", "quality": 90}


def paper(**wire):
    return Form(WireSettings(**wire), width=D, seed=0)


@cache
def paper_images():
    """800 images of 64 x 64 pixels: parts of the two photographs of scikit-learn, at half their size."""
    photos = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in load_sample_images().images]
    parts = torch.cat([photo.unfold(1, 128, 14).unfold(2, 128, 14).flatten(1, 2) for photo in photos], 1)
    halved = torch.nn.functional.interpolate(parts.transpose(0, 1)[:N].float(), size=(64, 64), mode="area")
    assert len(halved) == N
    return halved.round().to(torch.uint8)


def paper_bytes(by):
    """(up, down) of a client in a round, the mean over image and text clients, measured on packed messages."""
    ids, random = torch.arange(N) + 7 * N, torch.Generator().manual_seed(0)
    labels = torch.randint(C, (N,), generator=random)
    z_ND = torch.nn.functional.layer_norm(torch.randn(N, D, generator=random), (D,))
    up = Answers(ids, labels, torch.rand(N, generator=random), z_ND, z_ND[:, :0])
    samples = [Samples(ids, images=by.images(paper_images())), Samples(ids, texts=("x" * 240,) * N)]
    down = [codec.size(codec.pack(one, HEADER, form=by)) for one in samples]
    targets = codec.size(codec.pack(Targets(ids, labels, z_ND), HEADER, form=by))
    return codec.size(codec.pack(up, HEADER, form=by)) / MB, (sum(down) / 2 + targets) / MB


def test_fedmmkt_at_the_papers_sizes():
    """The paper has 2.35 MB up and 7.13 MB down; here every sample is kept, so the targets are as large as they get."""
    up, down = paper_bytes(paper(**SMALL))
    assert up <= 0.60 and down <= 1.8, (up, down)
    exact_up, _ = paper_bytes(EXACT)
    assert 2.35 <= exact_up <= 2.37


def test_logits_at_the_papers_sizes():
    """The paper has 0.31 MB up."""
    logits = torch.randn(N, C, generator=torch.Generator().manual_seed(0)) * 4
    for wire in ({"vectors": "float16"}, {"vectors": "int8"}):
        by = paper(**SMALL | wire)
        assert codec.size(codec.pack(Logits(torch.arange(N), logits), HEADER, form=by)) / MB <= 0.05


@pytest.mark.parametrize(
    "wire", [{}, {"vectors": "float16"}, SMALL, {"projection": 64, "vectors": "int8"}, {"top": 300}]
)
def test_the_sizes_that_are_planned_are_those_of_messages(wire):
    by, x, logits = paper(**wire), torch.randn(N, D), torch.randn(N, C)
    for f, value in ((field(Answers, "representations"), x), (field(Logits, "logits"), logits)):
        written = sum(part.nbytes for part in by.write(f, value).values())
        assert written == by.array_bytes(f, value.shape) == N * by.row_bytes(value.shape[1], value is logits)
    up = modelled(N, 4, 4, C, D, 1, 1, form=by)["up"]
    assert up == N * (by.row_bytes(D) + 4)


def test_what_a_row_costs_by_hand():
    assert paper().row_bytes(768) == 3072 and paper().row_bytes(102, scores=True) == 408
    assert paper(vectors="int8").row_bytes(768) == 772 and paper(vectors="float16").row_bytes(0) == 0
    assert paper(vectors="float16", projection=64).row_bytes(2 * 768) == 2 * 64 * 2
    assert paper(vectors="int8", top=10).row_bytes(102, scores=True) == 11 + 4 + 10
    assert paper(vectors="float16", top=10).row_bytes(1000, scores=True) == 22 + 20  # 1,000 classes: int16


# -- images ------------------------------------------------------------------------------------------------------------


def test_images_of_lower_quality_are_smaller_and_like_the_others():
    images = paper_images()[:24]
    sizes = {}
    for name, wire in {
        "png": {},
        "webp": {"images": "webp"},
        "webp 90": {"images": "webp", "quality": 90},
        "webp 50": {"images": "webp", "quality": 50},
        "jpeg 90": {"images": "jpeg"},
        "jpeg 50": {"images": "jpeg", "quality": 50},
    }.items():
        encoded = form(**wire).images(images)
        sizes[name] = sum(map(len, encoded))
        apart = (pixels.decode(pixels.check_images(encoded)).float() - images.float()).abs().mean()
        assert apart == 0 if name in ("png", "webp") else 0 < apart < 12, (name, apart)
    assert sizes["webp 50"] < sizes["webp 90"] < sizes["webp"] < sizes["png"] and sizes["jpeg 50"] < sizes["jpeg 90"]


def test_quality_is_of_formats_that_lose():
    with pytest.raises(ValueError, match="quality is of webp and jpeg"):
        WireSettings(quality=90)
    with pytest.raises(ValueError, match="png loses nothing"):
        pixels.encode(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "png", 90)


# -- what is not as the form says --------------------------------------------------------------------------------------


def changed(record, **arrays):
    """The record with these arrays in the place of its own; None takes one away."""
    kept = {name: a for name, a in record["arrays"].items()}
    for name, value in arrays.items():
        name = name.replace("__", ".")
        kept.pop(name, None)
        if value is not None:
            kept[name] = Array(value)
    record["arrays"] = type(record["arrays"])(kept)
    return record


TOP = {"vectors": "int8", "top": 2}
INDEX = np.array([[0, 1], [2, 1], [4, 3]], np.uint8)


@pytest.mark.parametrize(
    "wire, broken, complaint",
    [
        ({"vectors": "int8"}, {"logits__scale": None}, "logits.scale is missing"),
        ({"vectors": "int8"}, {"logits__scale": np.ones(2, np.float32)}, "logits.scale should be one float32 for each"),
        ({"vectors": "int8"}, {"logits__scale": np.ones(3, np.float64)}, "logits.scale should be one float32 for each"),
        ({"vectors": "int8"}, {"logits__scale": np.array([1, np.nan, 1], np.float32)}, "no finite numbers from 0"),
        ({"vectors": "int8"}, {"logits__scale": np.array([1, -1, 1], np.float32)}, "no finite numbers from 0"),
        ({"vectors": "int8"}, {"logits__scale": np.full(3, 3e38, np.float32)}, "logits has NaN or infinite values"),
        ({"vectors": "int8"}, {"logits__scale": np.full(3, 1e3, np.float32)}, "0000.0"),
        ({"vectors": "int8"}, {"logits": np.zeros((3, 5), np.float32)}, "logits has dtype float32, expected int8"),
        ({"vectors": "float16"}, {"logits": np.full((3, 5), np.nan, np.float16)}, "logits has NaN or infinite"),
        ({}, {"logits": np.zeros((3, 5), np.int8), "logits__scale": np.ones(3, np.float32)}, "expected float32"),
        ({}, {"logits__scale": np.ones(3, np.float32)}, "logits.scale is not a field of Logits"),
        ({}, {"logits__top": INDEX}, "logits.top is not a field of Logits"),
        (TOP, {"logits__top": None}, "logits.top is missing"),
        (TOP, {"logits__top": INDEX.astype(np.int64)}, "logits.top has dtype int64, expected uint8"),
        (TOP, {"logits__top": INDEX[:2]}, "should have 3 scores a row, and logits.top 2"),
        (TOP, {"logits__top": INDEX[:, :1]}, "should have 3 scores a row, and logits.top 2"),
        (TOP, {"logits__top": INDEX + 1}, "names a class outside the 5 there are"),
        (TOP, {"logits__top": np.array([[0, 1], [2, 2], [4, 3]], np.uint8)}, "names one class twice in a row"),
        (TOP, {"logits": np.zeros((3, 2), np.int8)}, "should have 3 scores a row"),
        ({"compact": True}, {"ids": np.array([0, 1, 1], np.uint8)}, "ids name one id twice"),
        ({"compact": True}, {"ids": np.array([0, 1, -1], np.int16)}, "below 0"),
        ({"compact": True}, {"ids": np.array([0, 1, 2], np.float32)}, "ids has dtype float32, expected int64"),
        ({}, {"ids": np.array([0, 1, 2], np.uint8)}, "ids has dtype uint8, expected int64"),
    ],
)
def test_what_is_not_as_the_form_says_is_named(wire, broken, complaint):
    by = form(**wire)
    record = changed(codec.pack(Logits(torch.arange(3), torch.randn(3, 5)), HEADER, form=by), **broken)
    with pytest.raises(WireError) as caught:
        codec.unpack(record, Logits, bounds={"N": 3, "C": 5}, form=by)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_top_scores_need_a_number_of_classes_and_projections_a_width():
    by = form(top=2)
    record = codec.pack(Logits(torch.arange(3), torch.randn(3, 5)), HEADER, form=by)
    with pytest.raises(WireError, match="the receiver knows no number of classes"):
        codec.unpack(record, Logits, form=by)
    by = form(projection=4)
    record = changed(codec.pack(answers(), HEADER, form=by), representations=np.zeros((4, 5), np.float32))
    with pytest.raises(WireError, match="representations is 5 wide, with wire.projection a multiple of 4"):
        codec.unpack(record, Answers, form=by)


def test_no_mutation_of_a_form_raises_anything_but_a_wire_error():
    random = np.random.default_rng(0)
    by = form(vectors="int8", top=2, compact=True)
    for _ in range(300):
        record = codec.pack(Logits(torch.arange(4), torch.randn(4, 6)), HEADER, form=by)
        name = random.choice(["ids", "logits", "logits.scale", "logits.top"])
        whole = record["arrays"][name]
        data = bytearray(whole.data)
        for place in random.integers(0, len(data), size=random.integers(1, 20)):
            data[place] = random.integers(256)
        cut = bytes(data[: random.integers(1, len(data) + 1)])
        broken = Array(dtype=whole.dtype, shape=whole.shape, stype=whole.stype, data=cut)
        record["arrays"] = type(record["arrays"])({**record["arrays"], name: broken})
        try:
            back = codec.unpack(record, Logits, bounds={"N": 4, "C": 6}, form=by)
        except WireError:
            continue
        assert torch.isfinite(back.logits).all() and back.logits.shape == (4, 6)


# -- the form of a run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, more, up, down",
    first(
        [
            ("fedmmkt", ["method.server.samples=60", "wire=small"], 0.5, 0.8),
            ("fedmmkt", ["method.server.samples=60", "method.variant=logit", "wire=small", "wire.top=2"], 0.9, 0.8),
            ("creamfl", ["method.server.public.samples=60", "wire.vectors=int8", "wire.projection=8"], 0.5, 0.7),
        ]
    ),
)
def test_a_run_sends_and_takes_the_form_of_its_settings(method, more, up, down, toy_conf, federated, tmp_path):
    """Through the real apps: fewer bytes both ways, and no reply is refused."""
    found = {}
    for name in ("exact", "small"):
        given = [one for one in more if name == "small" or not one.startswith("wire")]
        run = federated(toy(toy_conf, method, *given, f"out={tmp_path / name}"))
        assert not faults(run)
        found[name] = lines(run)[-1]["metrics"]
    for way, most in (("up", up), ("down", down)):
        share = found["small"][f"bytes/{way}_per_client"] / found["exact"][f"bytes/{way}_per_client"]
        assert share <= most, (way, share)


def test_a_client_of_another_form_is_named_and_left_out(toy_conf, federated):
    def exact(question, reply):
        if question.metadata.dst_node_id % 2 or "represent" not in question.metadata.message_type:
            return reply
        record = reply.content
        record["arrays"] = type(record["arrays"])(
            {**record["arrays"], "representations": Array(np.zeros((12, 32), np.float32))}
        )
        return reply

    run = federated(toy(toy_conf, "fedmmkt", "wire=small"), exact)
    assert {e["fault"] for e in faults(run)} == {
        "sent a bad reply: Answers.representations has dtype float32, expected int8"
    }


def test_noise_is_added_before_the_form(toy_conf, federated):
    """What leaves is the noisy row, rounded: a projection or a scale never sees the row itself."""
    from client_app.privacy.protection import Protection

    seen, noised = [], Protection.noised

    def watched(self, up):
        made = noised(self, up)
        seen.append(made)
        return made

    sent, pack = [], codec.pack

    def packed(payload, *rest, **how):
        sent.append(payload)
        return pack(payload, *rest, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Protection, "noised", watched)
        patch.setattr(codec, "pack", packed)
        federated(toy(toy_conf, "creamfl", "privacy=gaussian", "privacy.seeded=true", "wire.vectors=int8"))
    written = [one for one in sent if isinstance(one, Features) and any(one is made for made in seen)]
    assert written and not [one for one in seen if isinstance(one, Features) and not any(one is x for x in sent)]


def test_the_listing_names_the_form_that_leaves(toy_conf):
    conf = toy(toy_conf, "fedmmkt", "wire=small", "wire.projection=8")
    kinds = {(f.payload, f.name): f for f in listing(conf).fields if f.way == "up"}
    said = kinds["Answers", "representations"]
    assert said.kind == "int8, one scale a row, projected to 8 values" and said.size == 12 * (8 + 4)
    assert "smallest type" in kinds["Answers", "labels"].kind
    down = {(f.payload, f.name): f.kind for f in listing(conf).fields if f.way == "down"}
    assert down["Samples", "images"] == "encoded images, webp of quality 90"


def test_a_projection_is_shorter_than_what_it_stands_for(toy_conf):
    conf = toy(toy_conf, "fedmmkt")
    conf.wire.projection = conf.clients.width
    with pytest.raises(SettingsError, match="wire.projection is 32, it must be below clients.width, which is 32"):
        preflight.validate(conf)


def test_the_key_of_earlier_versions_names_the_new_one(toy_conf):
    with pytest.raises(SettingsError, match="method.server.image_format is now called wire.images"):
        toy_conf("method=fedmmkt", "method.server.image_format=webp")
