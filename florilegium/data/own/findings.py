"""What is found wrong with own data: a kind, a place (file and row) and one short sentence."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LONGEST = 240  # characters of one finding; what stands before and behind it in a line has the rest of 300
WHERE = 110  # of them for the place, which is cut at its front: the file's name and the row stay


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: its kind, where (file and row), what; `refused` data are not opened."""

    kind: str
    where: str
    what: str
    refused: bool = True

    def __str__(self) -> str:
        where = cut_front(shown(self.where), WHERE)
        return f"{where}: {cut(shown(self.what), LONGEST - len(where) - 2)}"


class Unread(ValueError):
    """The data cannot be read as a table at all; `findings` say why."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__(str(findings[0]))
        self.findings = findings


class BadCell(ValueError):
    """A cell of a row cannot be used; `kind` is the finding's."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


def shown(value: object) -> str:
    """The value as one printable line: names of files may hold line ends, control characters, or broken encoding."""
    text = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def cut(text: str, most: int) -> str:
    """At most `most` characters of a text."""
    return text if len(text) <= most else text[: most - 4] + " ..."


def cut_front(text: str, most: int) -> str:
    """The last `most` characters of a text."""
    return text if len(text) <= most else "... " + text[4 - most :]


def quoted(value: object, most: int = 60) -> str:
    """A name in quotes, on one line and not too long."""
    return f"'{cut(shown(value), most)}'"


def listed(names: Iterator[object] | list | tuple, most: int = 6) -> str:
    """The first names of a list, each cut, and how many there are."""
    every = list(names)
    more = f", ... ({len(every)} in all)" if len(every) > most else ""
    return ", ".join(cut(shown(name), 24) for name in every[:most]) + more


@contextmanager
def reading(place: Path) -> Iterator[None]:
    """Whatever a reader raises becomes one finding."""
    try:
        yield
    except Unread:
        raise
    except (Exception, RecursionError) as error:  # Arrow and `datasets` have dozens of errors for a torn file
        line = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        raise Unread(Finding("malformed file", str(place), f"cannot be read: {cut(shown(line), 120)}")) from error
