"""WordNet's own files, as Debian's package wordnet-base installs them: synsets, hypernyms and definitions."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DEBIAN = Path("/usr/share/wordnet")
PARTS = ("noun", "verb", "adj", "adv")
LEXICOGRAPHER_FILES = 45  # numbers 0 to 44: noun.animal, noun.artifact, verb.motion, ...


@dataclass(frozen=True)
class Synset:
    """One meaning: its words (lower case, with spaces), its definition without examples, and the broader meanings."""

    name: str  # 'n02084071': part of speech and offset
    words: tuple[str, ...]
    definition: str
    broader: tuple[str, ...]
    lexicographer_file: int
    instance: bool  # a single thing such as one river, not a kind


def definition_of(gloss: str) -> str:
    """The definition alone: quoted examples and remarks in brackets at its beginning are left out."""
    kept = re.split(r';?\s*"', gloss, maxsplit=1)[0]
    kept = re.sub(r"^\([^)]*\)\s*", "", kept.strip())
    return " ".join(kept.strip(" ;:").split())


def parsed(line: str, part: str) -> Synset:
    fields, gloss = line.split(" | ", 1)
    values = fields.split(" ")
    count = int(values[3], 16)
    words = tuple(re.sub(r"\(\w+\)$", "", word).replace("_", " ").lower() for word in values[4 : 4 + 2 * count : 2])
    pointers = values[5 + 2 * count :]
    targets = [pointers[4 * k : 4 * k + 3] for k in range(int(values[4 + 2 * count]))]
    broader = tuple(f"{pos}{offset}" for sign, offset, pos in targets if sign in ("@", "@i"))
    instance = any(sign == "@i" for sign, _, _ in targets)
    return Synset(f"{part[0]}{values[0]}", words, definition_of(gloss), broader, int(values[1]), instance)


class WordNet:
    """All synsets by name, and the order of a noun's meanings from the most to the least frequent."""

    def __init__(self, folder: Path = DEBIAN):
        if not (folder / "data.noun").exists():
            raise SystemExit("WordNet is missing: install the Debian package wordnet-base")
        self.synsets: dict[str, Synset] = {}
        for part in PARTS:
            with (folder / f"data.{part}").open(encoding="utf-8") as file:
                found = [parsed(line, part) for line in file if not line.startswith("  ")]
            self.synsets |= {synset.name: synset for synset in found}
        self.nouns: dict[str, list[str]] = {}
        with (folder / "index.noun").open(encoding="utf-8") as file:
            for line in file:
                if not line.startswith("  "):
                    values = line.split()
                    senses = [f"n{offset}" for offset in values[-int(values[2]) :]]
                    self.nouns[values[0].replace("_", " ")] = senses
        self.above = cache(self._above)

    def _above(self, name: str) -> frozenset[str]:
        """The synset and everything broader."""
        broader = self.synsets[name].broader
        return frozenset({name}).union(*(self.above(other) for other in broader))

    def sense(self, word: str, number: int) -> str:
        """sense("plant", 2): the synset of a noun's second meaning."""
        return self.nouns[word][number - 1]

    def singular(self, word: str) -> str | None:
        """A noun of WordNet in the form that it is listed in, or None."""
        word = word.lower()
        forms = [word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word)]
        return next((form for form in forms if form in self.nouns), None)
