"""The public paired set: one order on both sides, clean features, weights that travel once."""

import json

import pytest
import torch

from client_app.blocks.representing import read
from client_app.client import Client
from client_app.memory import Memory
from florilegium import seeds
from florilegium.config import composition
from florilegium.config.composition import SettingsError
from florilegium.data import public, stored_images
from florilegium.data.datasets import SPLITS, DataError, open_dataset
from florilegium.data.private import open_private
from florilegium.data.public import hashed, held_out_pairs, open_public, same_order
from florilegium.data.stored_images import StoredImages
from florilegium.models import embeddings
from florilegium.models.build import build_pair
from florilegium.models.embeddings import public_features
from florilegium.protocol import codec, deltas, pixels
from florilegium.protocol.codec import Header
from florilegium.protocol.deltas import ChangesError, Sent, applied, changed, fingerprints, version_of
from florilegium.protocol.payloads import Features, Modules, PublicSet
from florilegium.protocol.validation import WireError

HEADER = Header("method", 1, 1)


@pytest.fixture
def client(toy_conf, tmp_path):
    def made(conf=None):
        conf = conf or toy_conf("method=standalone")
        return Client(conf, 0, open_private(conf, 0, "image", {}), Memory(tmp_path / "memory", 1, 1), 1)

    return made


# -- the set -----------------------------------------------------------------------------------------------------------


def test_pairs_are_public_rows_with_whole_texts(toy_conf):
    pairs = open_public(toy_conf())
    train = open_dataset(toy_conf().data).train
    rows = {i: n for n, i in enumerate(train["id"][:])}
    assert len(pairs) == 64 and pairs.images.shape == (64, 3, 16, 16) and pairs.images.dtype == torch.uint8
    assert pairs.ids.tolist() == sorted(set(pairs.ids.tolist()))
    for n in (0, 17, 63):
        row = train[rows[int(pairs.ids[n])]]
        assert row["part"] == "public" and pairs.labels[n] == row["label"]
        assert pairs.texts[n] == ", ".join([row["text"], *row["tags"]])


def test_toy_s_private_rows_are_what_they_were(toy_conf):
    splits = open_dataset(toy_conf().data)
    assert [len(splits.private(s)) for s in SPLITS] == [160, 32, 64]
    assert [len(splits.public(s)) for s in SPLITS] == [96, 32, 32]


def test_the_set_depends_on_its_own_seed_where_it_has_one(toy_conf):
    one = open_public(toy_conf("seed=0", "data.public.seed=0"))
    assert open_public(toy_conf("seed=5", "data.public.seed=0")).order == one.order
    other = open_public(toy_conf("seed=0", "data.public.seed=1"))
    assert other.order != one.order and len(other) == len(one)


def test_the_order_is_a_hash_of_ids_content_and_order():
    """By hand: two grey images of one pixel; swapping, another grey, another text or label gives another hash."""
    ids, images, labels = torch.tensor([4, 7]), torch.tensor([[10], [20]], dtype=torch.uint8), torch.tensor([0, 1])
    first = hashed(ids, images, ("a", "bc"), labels)
    assert first == hashed(ids.clone(), images.clone(), ("a", "bc"), labels.clone()) and len(first) == 64
    others = [
        hashed(ids.flip(0), images.flip(0), ("bc", "a"), labels.flip(0)),
        hashed(ids, images + 1, ("a", "bc"), labels),
        hashed(ids, images, ("ab", "c"), labels),
        hashed(ids, images, ("a", "bc"), labels.flip(0)),
    ]
    assert len({first, *others}) == 5


def test_a_set_too_large_for_memory_is_the_same_set(client, toy_conf, monkeypatch):
    """Its images lie in a file. Order, chosen pairs, and what a client's model gets of them are equal bit for bit."""
    some = torch.tensor([5, 2, 60])

    def seen():
        public._open.cache_clear()
        us, ours = client(), open_public(toy_conf())
        given = read(us, ours.images, ours.texts)["image"]
        return ours, ours.select(some), torch.cat(list(given.split(7))), given[some], len(given)

    kept = seen()
    with monkeypatch.context() as patch:
        patch.setattr(stored_images, "LARGEST", 1000)
        large = seen()
    public._open.cache_clear()
    assert isinstance(large[0].images, StoredImages) and isinstance(large[1].images, StoredImages)
    assert large[0].order == kept[0].order and large[1].order == kept[1].order
    assert (
        torch.equal(large[1].images[:], kept[1].images)
        and large[1].samples("image").images == kept[1].samples("image").images
    )
    assert torch.equal(large[2], kept[2]) and torch.equal(large[3], kept[3]) and large[4] == kept[4] == 64


def test_a_client_with_another_set_refuses_with_both_hashes(client, toy_conf):
    ours = client().public_pairs
    theirs = open_public(toy_conf("data.public.seed=1"))
    with pytest.raises(DataError) as caught:
        client().public(PublicSet(theirs.order, theirs.ids))
    said = str(caught.value)
    assert ours.order[:16] in said and theirs.order[:16] in said and "client 0" in said and "\n" not in said
    assert torch.equal(client().public(PublicSet(ours.order, ours.ids)).ids, ours.ids)


def test_a_client_that_lacks_the_set_says_so(client, toy_conf):
    alone = client()
    alone.public_path = "nowhere-at-all"
    with pytest.raises(DataError, match="nowhere-at-all is not there: it needs one of the layouts") as caught:
        alone.public(PublicSet("a" * 64, torch.arange(3)))
    assert "\n" not in str(caught.value)


def test_a_part_of_the_set_is_asked_by_ids(client):
    mine = client()
    whole = mine.public_pairs
    some = mine.public(PublicSet(whole.order, whole.ids[[5, 2, 9]]))
    assert torch.equal(some.images, whole.images[[5, 2, 9]]) and some.texts[1] == whole.texts[2]
    assert some.order != whole.order
    with pytest.raises(DataError, match="no pair with id 999999"):
        mine.public(PublicSet(whole.order, torch.tensor([999_999])))


@pytest.mark.parametrize(
    "override, error, said",
    [
        ("data.public.pairs=5000", DataError, "data.public.pairs is 5000, but toy/train has 96 public rows"),
        ("data.public.pairs=1", SettingsError, "data.public: pairs must lie between 2"),
        ("+data.public.pair=3", SettingsError, "data.public.pair: Key 'pair' not in 'PublicSettings' (did you mean"),
    ],
)
def test_bad_settings_are_one_line(override, error, said, toy_conf):
    with pytest.raises(error) as caught:
        open_public(toy_conf(override))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_data_without_public_rows_say_so(tmp_path, toy_conf):
    from florilegium.data import toy

    for split in SPLITS:
        toy.dataset(split, 16).remove_columns(["part"]).to_parquet(str(tmp_path / f"{split}.parquet"))
    (tmp_path / "classes.json").write_text(json.dumps([{"name": name} for name in toy.CLASSES]))
    with pytest.raises(DataError, match="has no public rows"):
        open_public(toy_conf("data.name=mine", f"data.path={tmp_path}"))
    assert len(open_public(toy_conf(f"data.public.path={tmp_path}"))) == 64  # apart: all are public


def test_emoji_s_public_pairs_share_no_concept_with_those_that_judge():
    conf = composition.complete(composition.compose(["data=emoji"]))
    train = open_public(conf)
    assert len(train) == 1200
    for split in ("validation", "test"):
        for part in ("public", "private"):
            assert not set(held_out_pairs(conf, split, part).texts) & set(train.texts)
    assert len(held_out_pairs(conf, "test")) == 482 and len(held_out_pairs(conf, "test", "private")) == 572


def test_one_side_as_samples(toy_conf):
    pairs = open_public(toy_conf())
    images, texts = pairs.samples("image"), pairs.samples("text")
    assert torch.equal(pixels.decode(images.images), pairs.images) and not images.texts
    assert texts.texts == pairs.texts and torch.equal(texts.ids, pairs.ids) and not texts.images


# -- features ----------------------------------------------------------------------------------------------------------


def test_features_are_clean_and_cached_by_encoder_and_data(toy_conf, monkeypatch):
    conf = toy_conf()
    pairs = open_public(conf)
    with seeds.scoped("features"):
        model = build_pair(conf.clients, "vit+bert").train()
    looks = []
    real = embeddings.image_features
    monkeypatch.setattr(embeddings, "image_features", lambda *given: looks.append(1) or real(*given))
    one, two = public_features(model, pairs, "image"), public_features(model, pairs, "image")
    assert torch.equal(one, two) and len(looks) == 1 and model.image.training
    assert torch.allclose(one.norm(dim=-1), torch.ones(len(pairs)), atol=1e-5)
    some = public_features(model, pairs.select(torch.tensor([3, 1])), "image")
    assert torch.allclose(some, one[[3, 1]], atol=1e-5) and len(looks) == 2  # other data
    with torch.no_grad():
        model.image.project.bias += 0.5
    assert not torch.allclose(public_features(model, pairs, "image"), one) and len(looks) == 3  # another encoder
    one.zero_()
    assert public_features(model, pairs, "text").shape == (64, 32)


def test_equal_texts_have_equal_features(toy_conf):
    conf = toy_conf()
    pairs = open_public(conf)
    features = public_features(build_pair(conf.clients, "resnet+distilbert"), pairs, "text")
    first = pairs.texts.index(pairs.texts[-1])
    assert first < len(pairs) - 1 and torch.equal(features[first], features[-1])


# -- the wire ----------------------------------------------------------------------------------------------------------


def features(**changed_):
    unit = torch.eye(3)
    return Features(**{"ids": torch.arange(3), "image": unit, "text": unit[:, :0]} | changed_)


@pytest.mark.parametrize(
    "payload",
    [PublicSet("f" * 64, torch.arange(4)), features(), Modules("v1", "", {"project.weight": torch.randn(2, 3)})],
)
def test_round_trip(payload):
    back = codec.unpack(codec.pack(payload, HEADER), type(payload))
    for name, value in vars(payload).items():
        got = getattr(back, name)
        if isinstance(value, dict):
            assert all(torch.equal(got[k], v) for k, v in value.items())
        else:
            assert torch.equal(got, value) if isinstance(value, torch.Tensor) else got == value


@pytest.mark.parametrize(
    "change, said",
    [
        ({"image": torch.eye(3) * 7}, "image has a value of 7.0, above 1.001"),
        ({"image": torch.eye(4)}, "image has 4 along N, expected 3"),
        ({"text": torch.full((3, 3), torch.nan)}, "text has NaN"),
        ({"image": torch.eye(3)[:, :2]}, "image has 2 along I, expected 3"),
        ({"image": torch.zeros(3, 0)}, "image has 0 along I, expected 3"),
    ],
)  # a reply that misses its modality
def test_bad_features_are_named(change, said):
    with pytest.raises(WireError, match="Features") as caught:
        codec.unpack(codec.pack(features(**change), HEADER), Features, bounds={"I": 3})
    assert said in str(caught.value)


# -- weights once, then what changed -----------------------------------------------------------------------------------


def weights():
    return {"body": torch.arange(1000.0), "project": torch.ones(4), "count": torch.tensor(3)}


def test_only_changed_tensors_travel_again():
    sent, kept = Sent(), None
    first = sent.to(0, weights())
    kept = applied(kept, first)
    sent.arrived(0)
    assert first.base == "" and set(first.tensors) == {"body", "project", "count"}
    now = weights() | {"project": torch.zeros(4)}
    second = sent.to(0, now)
    sent.arrived(0)
    assert set(second.tensors) == {"project"} and second.base == first.version
    kept = applied(kept, second)
    assert all(torch.equal(kept[name], value) for name, value in now.items()) and version_of(kept) == second.version
    small, large = (codec.size(codec.pack(m, HEADER)) for m in (second, first))
    assert small < 0.15 * large and large > 4000
    assert not sent.to(0, now).tensors


def test_who_did_not_answer_gets_everything_again():
    sent = Sent()
    sent.to(0, weights())
    assert sent.to(0, weights()).base == ""  # the first never arrived
    sent.arrived(0)
    assert sent.to(0, weights()).base and sent.to(1, weights()).base == ""


def test_a_delta_for_another_version_is_refused():
    known = fingerprints(weights())
    delta = changed(weights() | {"project": torch.zeros(4)}, known)
    with pytest.raises(ChangesError, match="this client keeps nothing"):
        applied(None, delta)
    other = weights() | {"body": torch.zeros(1000)}
    with pytest.raises(ChangesError) as caught:
        applied(other, delta)
    assert version_of(other) in str(caught.value) and delta.base in str(caught.value)
    torn = Modules(delta.version, delta.base, {"project": torch.ones(4) * 2})
    with pytest.raises(ChangesError, match="the server's changes"):
        applied(weights(), torn)


def test_other_names_mean_everything():
    known = fingerprints(weights())
    more = changed(weights() | {"new": torch.ones(1)}, known)
    assert more.base == "" and "body" in more.tensors


def test_a_fingerprint_tells_type_shape_and_bits():
    made = [
        torch.zeros(4),
        torch.zeros(2, 2),
        torch.zeros(4, dtype=torch.int32),
        torch.zeros(4).half(),
        -torch.zeros(4),
        torch.zeros(0),
        torch.tensor(0.0),
    ]
    assert len({deltas.fingerprint(t) for t in made}) == len(made)
    assert deltas.fingerprint(torch.zeros(4, 2).T) == deltas.fingerprint(torch.zeros(2, 4))


def test_what_a_sender_knows_survives_a_checkpoint():
    sent = Sent()
    sent.to(3, weights())
    sent.arrived(3)
    again = Sent()
    again.restore(json.loads(json.dumps(sent.state())))
    assert again.to(3, weights()).base == version_of(weights())


def test_a_public_set_elsewhere_has_the_same_order(toy_conf, tmp_path):
    """What a deployment does: the client keeps the same files in a place of its own."""
    from florilegium.data import toy

    for split in SPLITS:
        toy.dataset(split, 16).to_parquet(str(tmp_path / f"{split}.parquet"))
    (tmp_path / "classes.json").write_text(json.dumps([{"name": name} for name in toy.CLASSES]))
    same_order(open_public(toy_conf(), str(tmp_path)), open_public(toy_conf()).order)
