"""What one cell of a table can be: a text or several, a label, an id. Each is read rightly or refused by name.

Text files give strings. JSON, Parquet and saved data sets give whatever they hold; nothing is turned into a text here.
"""

from __future__ import annotations

import datetime
import decimal
import math
import re
from typing import Any

from florilegium.data.own.findings import BadCell, cut, quoted, shown

HALF = re.compile("[\ud800-\udfff]")  # surrogates
LONGEST_LABEL = 200  # characters; what is longer is a text in the wrong column


def is_missing(value: Any) -> bool:
    """No value: null, a number that is none (as pandas writes what is missing), or blanks."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def texts_of(value: Any) -> list[str]:
    """The texts of a cell, trimmed: one, or several of a list; [] when there is none. BadCell."""
    if is_missing(value):
        return []
    if isinstance(value, (list, tuple)):
        return [_text(part) for part in value]
    return [_text(value)]


def _text(value: Any) -> str:
    if isinstance(value, bytes):  # a column of bytes, as older writers of Parquet store texts
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadCell("no text", "the text is bytes that are not UTF-8") from error
    if not isinstance(value, str):
        raise BadCell("no text", f"the text is {described(value)}, not a text")
    if (half := half_character(value)) is not None:
        raise BadCell("wrong encoding", f"the text has half of a character ({half})")
    text = value.strip()
    if not text:
        raise BadCell("empty text", "the text is empty")
    return text


def half_character(text: str) -> str | None:
    """The first surrogate of a text, as an escape: JSON can hold one half of a character, no text can."""
    found = None if text.isascii() else HALF.search(text)
    return f"\\u{ord(found[0]):04x}" if found else None


def label_of(value: Any) -> int | str:
    """A class by its name, or by its number where the cell is a whole number. BadCell."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if is_missing(value):
        raise BadCell("no label", "has no label")
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():  # as pandas writes whole numbers beside missing ones
        return int(value)
    if isinstance(value, int):
        return value
    if not isinstance(value, str):
        raise BadCell("no label", f"the label is {described(value)}; a row has one class, by its name")
    if half_character(value) is not None or "\0" in value:
        raise BadCell("wrong encoding", f"the label {quoted(value)} has a broken character")
    if len(value) > LONGEST_LABEL:
        raise BadCell("no label", f"the label has {len(value)} characters: {quoted(value, 40)}")
    return value


def id_of(value: Any) -> int | str | None:
    """An id: a whole number or a word; None when there is none. `1`, `1.0` and "1" are one id. BadCell."""
    if is_missing(value):
        return None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (list, tuple, dict)):
        raise BadCell("no id", f"the id is {described(value)}")
    word = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    number = word.isascii() and word.removeprefix("-").isdigit() and len(word) < 19 and str(int(word)) == word
    return int(word) if number else word


def described(value: Any) -> str:
    """What a value is, for a message; its content only where it is short."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float, decimal.Decimal)):
        return f"the number {cut(shown(value), 24)}"
    if isinstance(value, (datetime.date, datetime.time, datetime.timedelta)):
        return f"a date or time ({cut(shown(value), 30)})"
    names = {list: "a list", tuple: "a list", dict: "an object", bytes: "bytes", str: "a text", type(None): "missing"}
    return names.get(type(value), f"of the type {type(value).__name__}")
