"""Payloads to Flower's records and back; the header of a message; its size in bytes.

`unpack` trusts nothing: a `WireError` names the field that is wrong (florilegium/protocol/validation.py).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from florilegium.protocol import pieces, validation
from florilegium.protocol.budget import Budget
from florilegium.protocol.forms import EXACT, Form
from florilegium.protocol.payloads import PAYLOADS
from florilegium.protocol.validation import WireError


@dataclass(frozen=True)
class Header:
    """Which arm (method) of the run, which round and which exchange of the round a message belongs to."""

    arm: str
    round: int
    step: int


# the names under which epsilons are reported: privacy/epsilon/<these> in the records
EPSILONS = ("gaussian", "gaussian_row", "gnmax", "gnmax_sample", "dpsgd")
RECORDS = {
    "header": ConfigRecord,
    "arrays": ArrayRecord,
    "scalars": ConfigRecord,
    "tensors": ArrayRecord,
    "metrics": MetricRecord,
    "privacy": MetricRecord,
    "budget": MetricRecord,
}


def pack(
    payload: Any,
    header: Header,
    spent: dict[str, float] | None = None,
    budget: Budget | None = None,
    form: Form = EXACT,
) -> RecordDict:
    """Payload -> RecordDict: tensors and blobs as arrays, written in `form`, figures as metrics, the rest as config.

    `spent` is a client's epsilon of each mechanism (florilegium/privacy/mechanisms.py) and `budget` how many rows it
    trained on for this message, beside any payload.
    WireError for what is no payload.
    """
    if PAYLOADS.get(type(payload).__name__) is not type(payload) or not is_dataclass(payload):
        raise WireError(f"{type(payload).__name__} is no payload (florilegium/protocol/payloads.py)")
    arrays: dict[str, Array] = {}
    scalars: dict[str, Any] = {}
    record = RecordDict()
    for f in fields(payload):
        value = getattr(payload, f.name)
        if "array" in f.metadata:
            arrays |= {name: Array(part) for name, part in form.write(f, value).items()}
        elif "blobs" in f.metadata:
            if value:
                data, lengths = pieces.pack(value)
                arrays[f.name], arrays[f"{f.name}.lengths"] = Array(data), Array(lengths)
        elif f.name == "tensors":
            record["tensors"] = ArrayRecord({k: Array(v.detach().cpu().numpy()) for k, v in value.items()})
        elif f.name == "metrics":
            record["metrics"] = MetricRecord({k: float(v) for k, v in value.items()})
        else:
            scalars[f.name] = value
    record["arrays"] = ArrayRecord(arrays)
    record["scalars"] = ConfigRecord(scalars)
    if spent:
        record["privacy"] = MetricRecord({k: float(v) for k, v in spent.items()})
    if budget:
        record["budget"] = MetricRecord({k: float(v) for k, v in vars(budget).items()})
    record["header"] = ConfigRecord({"kind": type(payload).__name__, **vars(header)})
    return record


def header(record: RecordDict) -> Header:
    """The header of a message; WireError when it has none."""
    try:
        h: Any = record["header"]
        found = Header(str(h["arm"]), int(h["round"]), int(h["step"]))
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"the header is missing or broken ({error!s:.80})") from error
    if extra := sorted({*h} - {"kind", *vars(found)}):
        raise WireError(f"the header has {extra[0]:.40}, which it should not")
    return found


def spent(record: RecordDict) -> dict[str, float]:
    """A client's epsilon of each mechanism, or nothing. WireError for a name or number that is none."""
    told = dict(record["privacy"]) if "privacy" in record else {}
    if strange := [name for name in told if name not in EPSILONS]:
        raise WireError(f"privacy[{strange[0]:.40}] is no mechanism; there are {', '.join(EPSILONS)}")
    return {name: validation.figure(f"privacy.{name}", value, low=0.0) for name, value in told.items()}


def budget(record: RecordDict) -> Budget:
    """The rows a client says it trained on for this message. WireError for a name or number that is none."""
    told = dict(record["budget"]) if "budget" in record else {}
    if strange := [name for name in told if name not in vars(Budget())]:
        raise WireError(f"budget[{strange[0]:.40}] is unknown; there are {', '.join(vars(Budget()))}")
    return Budget(**{name: validation.figure(f"budget.{name}", value, low=0.0) for name, value in told.items()})


def digest(record: RecordDict) -> str:
    """A hash of a message's content, 64 hex digits: equal where every record is, in whatever order they lie."""
    whole = hashlib.sha256()
    for name, arrays in sorted(record.array_records.items()):
        for key, array in sorted(arrays.items()):
            whole.update(json.dumps([name, key, array.dtype, list(array.shape), len(array.data)]).encode())
            whole.update(array.data)
    records: list[tuple[str, Any]] = [*record.config_records.items(), *record.metric_records.items()]
    plain = {name: dict(held) for name, held in records}
    whole.update(json.dumps(plain, sort_keys=True, default=str).encode())
    return whole.hexdigest()


def size(record: RecordDict) -> int:
    """Bytes of content: array buffers, plus scalars and metrics as text."""
    arrays = sum(len(name) + len(a.data) for r in record.array_records.values() for name, a in r.items())
    records: list[Any] = [*record.config_records.values(), *record.metric_records.values()]
    plain = [dict(r) for r in records]
    return arrays + len(json.dumps(plain, default=str))


def unpack(record: RecordDict, *expected: type, bounds: dict[str, int] | None = None, form: Form = EXACT) -> Any:
    """RecordDict, whose arrays are written in `form`, -> payload.

    `bounds` fixes the length of axes the receiver knows, e.g. {"N": 400, "C": 24, "D": 128}.
    Raises WireError naming the payload, the field and what is wrong with it.
    """
    kind = str(record["header"]["kind"])[:40] if "kind" in record.get("header", ()) else "nothing known"
    cls = PAYLOADS.get(kind)
    if cls is None or (expected and cls not in expected):
        raise WireError(f"expected {' or '.join(e.__name__ for e in expected) or 'a known payload'}, got {kind}")
    try:
        return cls(**validation.values(cls, record, RECORDS, dict(bounds or {}), form.read))
    except WireError as error:
        raise WireError(f"{kind}.{error}") from None
    except Exception as error:  # bytes of a stranger in the hands of libraries: anything may be raised
        raise WireError(f"{kind} is malformed: {type(error).__name__} {error}") from error
