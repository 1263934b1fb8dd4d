"""1,000 broken replies over the real serialisation: none reaches a method, each is named and counted, none costs much.

Every payload class of the wire is broken in every way its fields allow, by seed; and so are the replies of real runs.
"""

import io
import json
import resource
import struct
import zlib
from dataclasses import fields

import numpy as np
import psutil
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.supercore.task_identity import TaskIdentity
from PIL import Image

from florilegium.federation.federation import Client, Federation
from florilegium.protocol import codec, payloads, phases
from florilegium.protocol.codec import Header
from florilegium.protocol.validation import WireError
from tests.local_grid import over_the_wire
from tests.test_every_method import faults, lines, toy

N, C, D = 6, 5, 4
BOUNDS = {
    "N": N,
    "L": N,
    "M": N,
    "C": C,
    "G": C,
    "J": 3,
    "H": 2,
    "D": D,
    "A": 0,
    "R": D,
    "P": 2,
    "W": 3,
    "V": 3,
    "Q": 2,
    "I": D,
    "T": D,
}
CASES = 1000
MARGIN = 0.02  # of what a bomb claims, the memory it may cost


def png(side=8):
    buffer = io.BytesIO()
    noise = np.random.default_rng(side).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(side):
    """A PNG of a few bytes whose header claims side x side pixels."""
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 999)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts
    )


def good(cls):
    """A payload of `cls` as it should be."""
    values = {}
    for f in fields(cls):
        if "array" in f.metadata:
            shape = [BOUNDS[axis] for axis in f.metadata["axes"]]
            values[f.name] = (
                torch.arange(shape[0])
                if f.metadata["unique"]
                else torch.ones(shape, dtype=getattr(torch, f.metadata["array"]))
            )
        elif "blobs" in f.metadata:
            values[f.name] = tuple(png() for _ in range(N)) if f.name == "images" else ("a word",) * N
        else:
            values[f.name] = {
                "tensors": {"a.weight": torch.ones(2, 3), "steps": torch.tensor(7)},
                "metrics": {"loss": 0.5},
                "classes": [0, 2],
                "modality": "image",
            }.get(f.name, 3 if f.type == "int" else "word")
    return cls(**values)


# -- ways to break a record: each a function (record, random) that breaks it in place and gives what the fault must name


def headers():
    def entry(name, value):
        def broken(record, random):
            record["header"] = ConfigRecord({**record["header"], name: value(random) if callable(value) else value})
            return "header" if isinstance(value, str) and name != "arm" else "answers"

        return broken

    def gone(record, random):
        del record["header"]
        return "header"

    def kind(record, random):
        other = random.choice([k for k in payloads.PAYLOADS if k != record["header"]["kind"]])
        record["header"] = ConfigRecord({**record["header"], "kind": str(other)})
        return f"got {other}"

    def more(record, random):
        record["header"] = ConfigRecord({**record["header"], "admin": True})
        return "admin"

    wrong = [
        entry("arm", "another"),
        entry("round", lambda x: int(x.integers(50, 99))),
        entry("step", -1),
        entry("round", "x"),
        entry("step", "nan"),
    ]
    return [*wrong, gone, kind, more]


def records(cls):
    def extra(record, random):
        record["backdoor"] = (ConfigRecord({"a": 1}), ArrayRecord({"a": Array(np.zeros(3))}))[random.integers(2)]
        return "backdoor"

    def scalar(record, random):
        record["scalars"]["evil"] = 1
        return "evil"

    def array(record, random):
        record["arrays"]["evil"] = Array(np.zeros(3))
        return "evil"

    def swapped(name):
        def broken(record, random):
            record[name] = MetricRecord({"a": 1.0}) if name != "metrics" else ConfigRecord({"loss": "0.5"})
            return name

        return broken

    def missing(name):
        def broken(record, random):
            del record[name]
            return name

        return broken

    there = [f.name for f in fields(cls) if f.name in ("tensors", "metrics")]
    return [extra, scalar, array, *(swapped(name) for name in ("arrays", "scalars", *there)), *map(missing, there)]


def raw(data):
    return Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=data)


def arrays(f):
    """An array field, broken in shape, type, value and bytes."""
    name = f.name

    def with_values(change):
        def broken(record, random):
            values = np.load(io.BytesIO(record["arrays"][name].data)).copy()
            record["arrays"][name] = Array(np.ascontiguousarray(change(values, random)))
            return name

        return broken

    def with_bytes(change):
        def broken(record, random):
            record["arrays"][name] = raw(change(record["arrays"][name].data, random))
            return name

        return broken

    def gone(record, random):
        del record["arrays"][name]
        return name

    def lying(data, random):
        return (
            data.replace(b"(%d," % N, b"(%d," % (N * 10 ** int(random.integers(3, 9))))
            if b"(%d," % N in data
            else b"\x93NUMPY\x01\x00"
        )

    ways = [
        with_values(lambda v, x: v[:-1]),
        with_values(lambda v, x: np.concatenate([v, v])),
        with_values(lambda v, x: v[..., None]),
        with_values(lambda v, x: v.astype("float64")),
        with_values(lambda v, x: v.astype("U4")),
        with_values(lambda v, x: v.astype("complex64")),
        gone,
        with_bytes(lambda d, x: d[: int(x.integers(0, len(d)))]),
        with_bytes(lying),
        with_bytes(lambda d, x: x.bytes(int(x.integers(1, 400)))),
        with_bytes(lambda d, x: d.replace(b"'<f4'", b"'|O'  ").replace(b"'<i8'", b"'|O'  ") + b"\x80\x04N."),
    ]
    return ways


def values(f):
    """An array field with one value, or all ids, that should not be."""
    name, dtype = f.name, f.metadata["array"]

    def put(value, everywhere=False):
        def broken(record, random):
            found = np.load(io.BytesIO(record["arrays"][name].data)).copy()
            found[... if everywhere else tuple(random.integers(0, n) for n in found.shape)] = value
            record["arrays"][name] = Array(found)
            return name

        return broken

    ways = [put(np.nan), put(np.inf), put(-np.inf)] if dtype.startswith("float") else []
    ways += [put(1e30), put(-1e30)] if dtype == "float32" else []
    ways += [put(f.metadata["low"] - 1)] if f.metadata["low"] is not None else []
    ways += [put(C), put(2**40)] if f.metadata["below"] else []
    ways += [put(2**62), put(1, everywhere=True)] if f.metadata["unique"] else []
    return ways + ([put(2**33)] if name == "ids" else [])  # no such id was sent; of `known` only the client can tell


def blobs(f):
    """Encoded images or texts, broken in their lengths and in their bytes."""
    name = f.name

    def pieces(change):
        def broken(record, random):
            values = [png() if name == "images" else b"a word"] * N
            values[int(random.integers(0, N))] = change(random)
            record["arrays"][name] = Array(np.frombuffer(b"".join(values), np.uint8))
            record["arrays"][f"{name}.lengths"] = Array(np.array([len(v) for v in values], np.int64))
            return name

        return broken

    def lengths(change):
        def broken(record, random):
            found = np.load(io.BytesIO(record["arrays"][f"{name}.lengths"].data)).copy()
            record["arrays"][f"{name}.lengths"] = Array(change(found, random))
            return name

        return broken

    def without(part):
        def broken(record, random):
            del record["arrays"][part]
            return name

        return broken

    def wrapped(values, random):
        """Lengths whose sum comes out right in 64 bits, and nowhere else."""
        total = int(values.sum())
        return np.array([2**62] * 4 + [total] + [0] * (N - 5), np.int64)

    ways = [
        lengths(lambda v, x: v[:-1]),
        lengths(lambda v, x: v + 1),
        lengths(lambda v, x: -v),
        lengths(wrapped),
        lengths(lambda v, x: v.astype("float64")),
        without(f"{name}.lengths"),
        without(name),
    ]
    if name == "images":
        return ways + [
            pieces(lambda x: png()[: int(x.integers(1, len(png()) - 1))]),
            pieces(lambda x: b"GIF89a" + b"0"),
            pieces(lambda x: bomb(int(x.integers(20_000, 60_000)))),
            pieces(lambda x: b""),
            pieces(lambda x: x.bytes(200)),
            pieces(lambda x: bomb(1024)),
        ]
    return [*ways, pieces(lambda x: b"\xff\xfe\xfa")]


def scalars(f):
    def put(value):
        def broken(record, random):
            record["scalars"][f.name] = value
            return f.name

        return broken

    def gone(record, random):
        del record["scalars"][f.name]
        return f.name

    wrong = {
        "int": ["many", -1, 2.5, 2**60, True],
        "str": [7, "x" * 10_000, b"word", ["a"]],
        "list[int]": ["all", ["a"], [-1], [2**60], [0.5]],
    }[str(f.type)]
    return [*map(put, wrong), gone] + ([put("sound")] if f.name == "modality" else [])


def states(f):
    def put(value):
        def broken(record, random):
            record["tensors"]["a.weight"] = value(random) if callable(value) else value
            return "tensors[a.weight]"

        return broken

    def long(record, random):
        record["tensors"]["x" * 5000] = Array(np.zeros(2))
        return "tensors"

    whole = Array(np.ones((2, 3), np.float32)).data
    return [
        put(Array(np.array([1.0, np.nan]))),
        put(Array(np.array([np.inf]))),
        put(Array(np.array([1e30]))),
        put(Array(np.array(["a"]))),
        put(Array(np.array([1j]))),
        put(Array(np.array([2**62]))),
        long,
        put(lambda x: raw(whole[: int(x.integers(1, len(whole) - 1))])),
        put(lambda x: raw(x.bytes(100))),
        put(raw(whole.replace(b"(2, 3)", b"(-2, -3)"))),
        put(raw(whole.replace(b"(2, 3)", b"(9999, 9999)"))),
    ]


def metrics(f):
    def put(name, value):
        def broken(record, random):
            record["metrics"] = MetricRecord({name: value})
            return "metrics"

        return broken

    return [
        put("loss", float("nan")),
        put("loss", float("inf")),
        put("loss", 1e300),
        put("loss", [1.0, 2.0]),
        put("x" * 5000, 1.0),
        put("loss", -(2**62)),
    ]


def ways(cls):
    """Every way to break a record of `cls`."""
    found = [*headers(), *records(cls)]
    for f in fields(cls):
        if "array" in f.metadata:
            found += arrays(f) + (values(f) if 0 not in (BOUNDS[axis] for axis in f.metadata["axes"]) else [])
        else:
            kind = blobs if "blobs" in f.metadata else {"tensors": states, "metrics": metrics}.get(f.name, scalars)
            found += kind(f)
    return found


# -- the gate ----------------------------------------------------------------------------------------------------------


class BrokenGrid:
    """Node 11 answers well, node 12 with the same reply, broken; both pass Flower's serialisation."""

    def __init__(self):
        self.replies, self.count = {}, 0

    def get_node_ids(self):
        return [11, 12]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            self.count += 1
            message.metadata.__dict__["_message_id"] = name = f"m{self.count}"
            record = codec.pack(self.payload, codec.header(message.content))
            if message.metadata.dst_node_id == 12:
                self.named = self.break_it(record, self.random)
            self.replies[name] = over_the_wire(Message(record, reply_to=message))
            ids.append(name)
        return ids

    def pull_messages(self, ids):
        return [self.replies.pop(i) for i in ids if i in self.replies]


@pytest.fixture
def identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def fuzzed(grid, federation, cls, break_it, random):
    """One exchange; the fault of the broken reply."""
    grid.payload, grid.break_it, grid.random = good(cls), break_it, random
    ids = torch.arange(N) if any(f.name == "ids" for f in fields(cls)) else None
    (reply,) = federation.ask("represent", payloads.Nothing(), cls, bounds=BOUNDS, ids=ids, needed=1)
    assert reply.client.id == 0 and type(reply.body) is cls  # the honest one's alone
    (entry,) = [e for e in federation.take_ledger() if e["fault"]]
    return entry


def test_a_thousand_broken_replies(identity):
    grid, random = BrokenGrid(), np.random.default_rng(5)
    federation = Federation(grid, timeout=5.0, quorum=1)
    federation.clients = federation.cohort = [Client(11, 0, "image", "vit"), Client(12, 1, "image", "vit")]
    kinds = {cls: ways(cls) for cls in payloads.PAYLOADS.values()}
    every = [(cls, way) for cls, those in kinds.items() for way in those]
    drawn = [every[i] for i in random.integers(0, len(every), max(CASES - len(every), 0))]
    used, grown = 0, []
    for n, (cls, way) in enumerate([*every, *drawn]):
        federation.round = n
        entry = fuzzed(grid, federation, cls, way, random)
        assert entry["client"] == 1 and entry["round"] == n and entry["fault"].startswith("sent a bad reply: ")
        assert grid.named in entry["fault"], f"{cls.__name__}, {way}: {entry['fault']} does not name {grid.named}"
        assert len(entry["fault"]) < 500 and "\n" not in entry["fault"]
        used += 1
        if n % 100 == 99:
            grown.append(psutil.Process().memory_info().rss)
    assert used >= CASES and {cls for cls, _ in every} == set(payloads.PAYLOADS.values())
    assert grown[-1] <= 1.2 * grown[0]


def test_faults_are_counted(identity):
    grid, random = BrokenGrid(), np.random.default_rng(6)
    federation = Federation(grid, timeout=5.0, quorum=1)
    federation.clients = federation.cohort = [Client(11, 0, "image", "vit"), Client(12, 1, "image", "vit")]
    federation.begin(4)
    for way in ways(payloads.Answers)[:20]:
        grid.payload, grid.break_it, grid.random = good(payloads.Answers), way, random
        federation.ask("represent", payloads.Nothing(), payloads.Answers, bounds=BOUNDS, ids=torch.arange(N), needed=1)
    assert federation.traffic(4)["clients/faults"] == 20


def test_a_bomb_costs_no_memory(identity):
    """RSS at its highest, before and after images that claim gigabytes."""
    record = codec.pack(good(payloads.Examples), Header("method", 0, 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for side in (1500, 30_000, 65_000):
        images = [bomb(side)] * N
        record["arrays"]["images"] = Array(np.frombuffer(b"".join(images), np.uint8))
        record["arrays"]["images.lengths"] = Array(np.array([len(i) for i in images], np.int64))
        with pytest.raises(WireError, match="images cannot be read: image 0: (is 1500x1500, more|Image size)"):
            codec.unpack(record, payloads.Examples)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MARGIN * 65_000 * 65_000 * 3


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fedmmkt", "fedavg"])
def test_a_run_goes_on_with_the_others(method, toy_conf, federated):
    """Client 1 breaks every reply after the first meeting, each in another way; the others' run is whole."""
    random, broken = np.random.default_rng(7), []

    def tamper(question, reply):
        kind = codec.header(question.content)
        if question.metadata.dst_node_id != 101 or kind.round == 0 or reply.has_error():
            return reply
        cls = payloads.PAYLOADS[reply.content["header"]["kind"]]
        record = reply.content
        whole = [way for way in [*headers(), *records(cls)]]
        broken.append(str(whole[int(random.integers(0, len(whole)))](record, random)))
        return Message(record, reply_to=question)

    conf = toy(toy_conf, method, "rounds=2", "timeouts.quorum=1", "evaluation.global_model=everywhere")
    run = federated(conf, tamper)
    found = faults(run)
    assert len(found) == len(broken) > 2 and {e["client"] for e in found} == {1}
    assert sum(record["metrics"]["clients/faults"] for record in lines(run)[1:]) <= len(found)
    for record in lines(run):
        assert np.isfinite([v for v in record["metrics"].values() if isinstance(v, float)]).all()
    assert json.loads((run / "summary.json").read_text())


def test_a_site_that_is_nobody_does_not_end_a_run(toy_conf, federated):
    """Its profile passes the wire, but its number and its class are in no list of the server's."""

    def tamper(question, reply):
        if question.metadata.message_type != phases.PHASES["profile"] or question.metadata.dst_node_id != 101:
            return reply
        strange = payloads.SiteProfile(77, "image", "vit", 5, [999])
        return Message(codec.pack(strange, codec.header(question.content)), reply_to=question)

    run = federated(toy(toy_conf, "fedavg", "rounds=1", "timeouts.quorum=1"), tamper)
    found = faults(run)
    assert found and all("Profile.client is 77, but clients.mix has" in entry["fault"] for entry in found)
    assert {entry["node"] for entry in found} == {"101"} and lines(run)[-1]["round"] == 1
