"""The contract: whatever is packed comes back, and nothing broken gets through."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from florilegium.protocol import codec, pieces, pixels
from florilegium.protocol.codec import Header
from florilegium.protocol.payloads import Answers, Logits, Nothing, Profile, Report, Samples, Targets, Weights
from florilegium.protocol.validation import WireError

HEADER = Header("method", 3, 2)
PNG = pixels.encode(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
BOUNDS = {"N": 4, "C": 5, "D": 6, "A": 0}


def answers(**changes):
    fields = {
        "ids": torch.arange(4),
        "labels": torch.tensor([0, 1, 4, 2]),
        "confidence": torch.rand(4),
        "representations": torch.randn(4, 6),
        "augmented": torch.zeros(4, 0),
    }
    return Answers(**fields | changes)


@pytest.mark.parametrize(
    "payload",
    [
        Nothing(),
        Profile(3, "image", "vit", 120, [0, 4]),
        Report({"accuracy": 0.5}, 10),
        answers(),
        Weights({"a.weight": torch.randn(2, 3), "count": torch.tensor(7)}, 12),
        Samples(torch.arange(2), images=PNG),
        Samples(torch.arange(2), texts=("a red apple", "déjà vu")),
        Targets(torch.arange(2), torch.tensor([1, 0]), torch.zeros(2, 0)),
        Logits(torch.arange(3), torch.randn(3, 5)),
    ],
)
def test_round_trip(payload):
    record = codec.pack(payload, HEADER)
    back = codec.unpack(record, type(payload))
    assert codec.header(record) == HEADER and type(back) is type(payload)
    for name, value in vars(payload).items():
        got = getattr(back, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(got, value) and got.dtype == value.dtype
        elif name == "tensors":
            assert all(torch.equal(got[k], v) for k, v in value.items())
        else:
            assert got == value


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"ids": torch.arange(3)}, "ids has 3 along N, expected 4"),
        ({"labels": torch.tensor([0, 1, 5, 2])}, "labels has a value of 5, but there are 5 of C"),
        ({"labels": torch.tensor([0, -1, 1, 2])}, "labels has a value of -1, below 0"),
        ({"labels": torch.rand(4)}, "labels has dtype float32, expected int64"),
        ({"confidence": torch.tensor([0.1, -0.1, 0.2, 0.3])}, "confidence has a value of -0.1"),
        ({"confidence": torch.tensor([0.1, 1e9, 0.2, 0.3])}, "confidence has a value of 1000000000.0, above 100.0"),
        ({"representations": torch.randn(4, 7)}, "representations has 7 along D, expected 6"),
        ({"representations": torch.randn(4, 6, 1)}, "representations has shape"),
        ({"representations": torch.full((4, 6), float("nan"))}, "representations has NaN or infinite values"),
        ({"representations": torch.full((4, 6), float("inf"))}, "representations has NaN or infinite values"),
        ({"representations": torch.randn(4, 6).double()}, "representations has dtype float64"),
        ({"augmented": torch.randn(4, 6)}, "augmented has 6 along A, expected 0"),
    ],
)
def test_a_bad_answer_is_named_by_field(changes, complaint):
    with pytest.raises(WireError, match="Answers") as caught:
        codec.unpack(codec.pack(answers(**changes), HEADER), Answers, bounds=BOUNDS)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_the_wrong_payload_is_refused():
    with pytest.raises(WireError, match="expected Answers, got Nothing"):
        codec.unpack(codec.pack(Nothing(), HEADER), Answers)


def test_an_unknown_kind_and_an_extra_field_are_refused():
    record = codec.pack(Nothing(), HEADER)
    record["header"]["kind"] = "Pickle"
    with pytest.raises(WireError, match="got Pickle"):
        codec.unpack(record)
    record = codec.pack(Nothing(), HEADER)
    record["scalars"]["backdoor"] = 1
    with pytest.raises(WireError, match="backdoor is not a field"):
        codec.unpack(record)


def test_a_missing_field_is_named():
    record = codec.pack(answers(), HEADER)
    del record["arrays"]["confidence"]
    with pytest.raises(WireError, match="confidence is missing"):
        codec.unpack(record, Answers)


def test_a_lying_array_header_is_refused_before_it_allocates():
    record = codec.pack(answers(), HEADER)
    good = record["arrays"]["representations"]
    lie = good.data.replace(b"(4, 6)", b"(4, 9)")
    record["arrays"]["representations"] = Array(dtype="float32", shape=(4, 9), stype="numpy.ndarray", data=lie)
    with pytest.raises(WireError, match="declares float32"):
        codec.unpack(record, Answers)


@pytest.mark.parametrize("lengths", [[2, 3], [-1, 5], [4, 4, 0]])
def test_blob_lengths_must_add_up(lengths):
    record = codec.pack(Samples(torch.arange(2), images=PNG), HEADER)
    record["arrays"]["images.lengths"] = Array(np.array(lengths, np.int64))
    with pytest.raises(WireError, match="images"):
        codec.unpack(record, Samples)


def test_figures_must_be_finite():
    record = codec.pack(Report({"accuracy": 1.0}, 1), HEADER)
    record["metrics"] = MetricRecord({"accuracy": float("nan")})
    with pytest.raises(WireError, match="accuracy"):
        codec.unpack(record, Report)


def test_garbage_never_raises_anything_but_a_wire_error():
    """1,000 seeded mutations of good records: each comes back whole or as a WireError."""
    random = np.random.default_rng(0)
    for _ in range(1000):
        record = codec.pack(answers(), HEADER)
        name = random.choice(["ids", "labels", "confidence", "representations"])
        data = bytearray(record["arrays"][name].data)
        for place in random.integers(0, len(data), size=random.integers(1, 20)):
            data[place] = random.integers(256)
        cut = bytes(data[: random.integers(1, len(data) + 1)])
        record["arrays"] = ArrayRecord(
            {
                k: Array(dtype=a.dtype, shape=a.shape, stype=a.stype, data=cut if k == name else a.data)
                for k, a in record["arrays"].items()
            }
        )
        try:
            back = codec.unpack(record, Answers, bounds=BOUNDS)
        except WireError:
            continue
        assert torch.isfinite(back.representations).all() and back.labels.max() < 5


def test_size_counts_the_arrays():
    record = codec.pack(answers(), HEADER)
    payload = 4 * 8 + 4 * 8 + 4 * 4 + 4 * 6 * 4
    assert payload < codec.size(record) < payload + 5 * 128 + 400  # numpy headers and names


def test_header_must_be_there():
    record = codec.pack(Nothing(), HEADER)
    record["header"] = ConfigRecord({"kind": "Nothing"})
    with pytest.raises(WireError, match="header"):
        codec.header(record)


# -- bytes and lengths, and decoding once ------------------------------------------------------------------------------


def test_pieces_are_all_bytes_and_their_lengths():
    data, lengths = pieces.pack([b"ab", "", "d\u00e9"])
    assert bytes(data) == b"abd\xc3\xa9" and lengths.tolist() == [2, 0, 3]
    assert pieces.unpack(data, lengths) == [b"ab", b"", "d\u00e9".encode()]
    assert pieces.unpack(*pieces.pack([])) == []
    with pytest.raises(pieces.PiecesError, match="lengths that do not add up to its 5 bytes"):
        pieces.unpack(data, np.array([2, 0, 4]))
    with pytest.raises(pieces.PiecesError, match="should be bytes and their lengths"):
        pieces.unpack(data.astype(np.int8), lengths)


def test_what_arrived_is_decoded_already(monkeypatch):
    sent = codec.unpack(codec.pack(Samples(torch.arange(2), images=PNG), HEADER), Samples)
    monkeypatch.setattr(pixels, "_loaded", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(pixels.decode(sent.images), torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert sent.images == PNG


def test_images_of_several_sizes_arrive_and_are_not_kept_decoded():
    other = pixels.encode(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    assert pixels.check_images([*PNG, *other]).decoded is None
    with pytest.raises(ValueError, match="image 2: size"):
        pixels.decode(pixels.check_images([*PNG, *other]))


def test_a_client_decodes_each_image_once_a_round(toy_conf, federated, monkeypatch):
    """FedMMKT's clients need a sample when it arrives, when they answer, when they learn from it, and for replay."""
    decoded, loaded = [], pixels._loaded
    monkeypatch.setattr(pixels, "_loaded", lambda row, image: decoded.append(row) or loaded(row, image))
    conf = toy_conf(
        "method=fedmmkt",
        "rounds=2",
        "method.server.samples=12",
        "tuning.batch=8",
        "method.client.pretrain_epochs=1",
        "method.client.replay=8",
        "evaluation.images_per_class=1",
    )
    readers = [member.modality for member in conf.clients.mix].count("image")
    federated(conf)
    assert len(decoded) == 2 * 12 * readers > 0
