"""Builds the lexicon: pictures and dictionary definitions of twelve classes, public and private concepts apart.

A concept is public when the mini models' first training saw it (the training concepts of tools/build_emoji.py), or when
its name holds a noun of a public one; all others are the clients'. Writes assets/data/lexicon, and into the cache the
pictures and texts that pre-train the backbones.
"""

import argparse
import json
import random
import re
from collections import Counter, defaultdict
from multiprocessing import Pool
from pathlib import Path

from build_emoji import concepts, split_by_concept
from build_fashion import CLASSES as FASHION
from dataset_files import JUDGE_LEXICON, PRETRAINING_LEXICON, PRETRAINING_TEXTS, features, write_parquet
from icon_sets import Finder, rendered_png, small
from lexicon_card import lexicon_card
from lexicon_classes import KINDS, NAMES, Meanings, label_of_emoji
from npm_packages import ICONS, MORE_STYLES, PUBLIC_STYLES, STYLES, TEXTS, credit, read_json, unpack, version
from picture_hash import near_pairs, picture_hash
from rich.progress import track
from wordnet import Synset, WordNet

SEED = "lexicon split"  # random.Random hashes the text itself, on every platform alike
EMOJI_STYLES = STYLES | MORE_STYLES
TEXTS_A_CLASS = 480  # private definitions of a class at most; the rest are public
SHARES = {"test": 0.45, "validation": 0.08}  # of private rows; the rest trains
HELD_OUT_ICONS = {"validation": 0.10, "test": 0.20}  # of the icons' nouns: public pairs that no model has seen
LEAST_WORDS = 5  # of a definition


def shuffled(items: list, name: str) -> list:
    order = sorted(items)
    random.Random(f"{SEED} {name}").shuffle(order)
    return order


class Sides:
    """Which nouns are public and which are private, and the concepts that follow from them."""

    def __init__(self, modules: Path, wordnet: WordNet):
        self.meanings = Meanings(wordnet)
        self.finder = Finder(modules, {**EMOJI_STYLES, "game-icons": ICONS})
        emojis = concepts(modules)
        old = split_by_concept(emojis)
        seen = [emoji for emoji in emojis if old.get(emoji["base"], "train") == "train"]
        self.public = set().union(*(self.nouns(emoji["label"]) for emoji in seen))
        self.public |= set().union(*map(self.nouns, FASHION))  # the first models saw these too
        subgroups = read_json(modules / TEXTS / "meta/groups.json")["subgroups"]
        self.emojis = [emoji | {"kind": label_of_emoji(subgroups[str(emoji["subgroup"])])} for emoji in emojis]
        public_bases = {emoji["base"] for emoji in seen}
        for emoji in self.emojis:
            emoji["side"] = "public" if emoji["base"] in public_bases else "private"
            if emoji["side"] == "private" and self.nouns(emoji["label"]) & self.public:
                emoji["side"] = "neither"
        self.icons = self.split_icons()

    def nouns(self, name: str) -> set[str]:
        return self.meanings.things(name)

    def split_icons(self) -> list[dict]:
        """The game icons that have a class: public where a public noun names them, else by their nouns' draw."""
        found = [{"name": name, "label": label, "nouns": self.nouns(name)}
                 for name in self.finder.sets["game-icons"]["icons"]
                 if (label := self.meanings.label_of_icon(name)) >= 0]  # fmt: skip
        taken = set().union(*(self.nouns(e["label"]) for e in self.emojis if e["side"] == "private"))
        free: set[str] = set().union(*(i["nouns"] for i in found)) - taken - self.public
        order, side, cut = shuffled(list(free), "icons"), {}, 0
        for split, share in HELD_OUT_ICONS.items():
            side |= dict.fromkeys(order[cut : (cut := cut + round(share * len(order)))], split)
        for icon in found:
            sides = {side.get(noun, "private") for noun in icon["nouns"]}
            if icon["nouns"] & self.public:
                icon |= {"side": "public" if not icon["nouns"] & taken and sides == {"private"} else "neither"}
            elif len(sides) == 1:
                icon |= {"side": sides.pop()}
            else:
                icon |= {"side": "neither"}
        self.public |= set(side)
        return found


# -- pictures --------------------------------------------------------------------------------------------------------


def drawn(job: tuple[dict, str]) -> dict:
    row, svg = job
    encoded = small(rendered_png(svg))
    return {**row, "image": {"bytes": encoded, "path": None}, "hash": picture_hash(encoded)}


def said(name: str) -> str:
    return " ".join(name.replace("-", " ").replace("’", "'").split())


def picture_jobs(sides: Sides) -> list[tuple[dict, str]]:
    """One job per concept and style that has it. Public emoji are drawn in the public styles alone."""
    jobs = []
    for emoji in sides.emojis:
        styles = PUBLIC_STYLES if emoji["side"] == "public" else tuple(EMOJI_STYLES)
        for style in styles if emoji["side"] != "neither" else ():
            if emoji["side"] == "private" and emoji["kind"] < 0 or (icon := sides.finder.icon(style, emoji)) is None:
                continue
            row = {"text": said(emoji["label"]), "tags": emoji.get("tags", []), "label": emoji["kind"], "style": style}
            jobs.append((row | {"concept": emoji["hexcode"], "side": emoji["side"]}, sides.finder.svg(style, icon)))
    for icon in sides.icons:
        if icon["side"] in ("neither", "private"):  # silhouettes, each drawn once, are too hard for a judge
            continue
        row = {"text": said(icon["name"]), "tags": [], "label": icon["label"], "style": "game-icons"}
        svg = sides.finder.svg("game-icons", icon["name"]).replace("currentColor", "#000")
        jobs.append((row | {"concept": f"icon:{icon['name']}", "side": icon["side"]}, svg))
    return jobs


def judge_pictures(sides: Sides, shown: list[dict]) -> list[dict]:
    """Public concepts in all styles, for the judge alone; none is nearly a picture that clients are judged on."""
    jobs = []
    for emoji in sides.emojis:
        if emoji["side"] == "public" and emoji["kind"] >= 0:
            for style in EMOJI_STYLES:
                if (icon := sides.finder.icon(style, emoji)) is not None:
                    row = {"text": said(emoji["label"]), "tags": [], "label": emoji["kind"], "style": style}
                    jobs.append((row | {"concept": emoji["hexcode"]}, sides.finder.svg(style, icon)))
    with Pool(1) as pool:
        rows = list(track(pool.imap(drawn, jobs, chunksize=64), "drawing for the judge", total=len(jobs)))
    held = [row["hash"] for row in shown if row["part"] == "private" and row["split"] != "train"]
    left_out = set(near_pairs([row["hash"] for row in rows], held)[0].tolist())
    return [row | {"id": n, "part": "public"} for n, row in enumerate(rows) if n not in left_out]


def without_twins(rows: list[dict]) -> list[dict]:
    """Leaves out pictures that are nearly the same as an earlier one of another concept, style or side."""
    hashes = [row["hash"] for row in rows]
    left, right = near_pairs(hashes, hashes)
    later = {int(b) for a, b in zip(left, right, strict=True) if a < b}
    return [row for n, row in enumerate(rows) if n not in later]


def dealt(rows: list[dict], key: str) -> None:
    """Gives private rows their split, stratified by class."""
    by_class = defaultdict(list)
    for n, row in enumerate(rows):
        by_class[row["label"]].append(n)
    for label, numbers in sorted(by_class.items()):
        order, cut = shuffled(numbers, f"{key} {label}"), 0
        for split, share in SHARES.items():
            for n in order[cut : (cut := cut + round(share * len(order)))]:
                rows[n]["split"] = split
        for n in order[cut:]:
            rows[n]["split"] = "train"


def pictures(sides: Sides) -> tuple[list[dict], list[dict]]:
    """(rows of the data set, public pictures for pre-training)."""
    jobs = picture_jobs(sides)
    with Pool(1) as pool:
        rows = list(track(pool.imap(drawn, jobs, chunksize=64), "drawing", total=len(jobs)))
    rows.sort(key=lambda row: row["side"] == "private")  # of two twins the public one stays
    rows = without_twins(rows)
    private = [row for row in rows if row["side"] == "private"]
    dealt(private, "pictures")
    shown = [row | {"split": "train" if row["side"] == "public" else row["side"]}
             for row in rows if row["side"] != "private"]  # fmt: skip
    pretraining = [row for row in shown if row["split"] == "train"]
    rows = [row | {"part": "private"} for row in private]
    rows += [row | {"part": "public"} for row in shown if row["label"] >= 0]
    return rows, pretraining


# -- texts -----------------------------------------------------------------------------------------------------------


def fits(synset: Synset, label: int) -> bool:
    """A definition of enough words none of which tells the class."""
    words = re.findall(r"[a-z]+", synset.definition.lower())
    return len(words) >= LEAST_WORDS and not set(words) & set(KINDS[label].telling)


def texts(sides: Sides, wordnet: WordNet) -> tuple[list[dict], list[dict]]:
    """(private definitions with their splits, all public synsets for pre-training)."""
    counts = Counter(synset.definition for synset in wordnet.synsets.values())
    labelled = {name: label for name, synset in wordnet.synsets.items()
                if name[0] == "n" and (label := sides.meanings.label_of_synset(name)) >= 0}  # fmt: skip
    free: dict[int, list[str]] = defaultdict(list)
    for name, label in labelled.items():
        synset = wordnet.synsets[name]
        known = synset.instance or set(synset.words) & sides.public or counts[synset.definition] > 1
        if not known and fits(synset, label):
            free[label].append(name)
    private = [n for label, names in sorted(free.items()) for n in shuffled(names, f"texts {label}")[:TEXTS_A_CLASS]]
    rows = [{"image": None, "text": wordnet.synsets[name].definition, "tags": [], "label": labelled[name],
             "concept": f"wordnet:{name}", "style": "wordnet", "part": "private"} for name in private]  # fmt: skip
    dealt(rows, "texts")
    kept_private = set(private)
    private_words = {word for name in private for word in wordnet.synsets[name].words}
    private_words |= set().union(*(sides.nouns(e["label"]) for e in sides.emojis if e["side"] == "private"))
    private_words |= set().union(*(i["nouns"] for i in sides.icons if i["side"] != "public"))
    public = [
        {"concept": f"wordnet:{synset.name}", "text": synset.definition, "word": synset.words[0],
         "label": labelled.get(synset.name, -1), "file": synset.lexicographer_file}
        for synset in wordnet.synsets.values()
        if synset.name not in kept_private and not (synset.name[0] == "n" and set(synset.words) & private_words)
    ]  # fmt: skip
    return rows, public


def write(rows: list[dict], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for n, row in enumerate(rows):
        row |= {"id": n, "modality": "pair" if row["image"] else "text"}
    for split in ("train", "validation", "test"):
        write_parquet([row for row in rows if row["split"] == split], features(modality=True), out / f"{split}.parquet")
    classes = [{"name": kind.name} | ({} if kind.article is None else {"article": kind.article}) for kind in KINDS]
    (out / "classes.json").write_text(json.dumps(classes, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--out", type=Path, default=Path("assets/data/lexicon"))
    args = parser.parse_args()

    packages = (*EMOJI_STYLES.values(), TEXTS, ICONS)
    modules, wordnet = unpack(args.cache, packages), WordNet()
    sides = Sides(modules, wordnet)
    shown, pretraining_pictures = pictures(sides)
    told, pretraining_texts = texts(sides, wordnet)
    rows = shown + told
    write(rows, args.out)
    left_out = sorted(set(wordnet.synsets) - {row["concept"].removeprefix("wordnet:") for row in pretraining_texts})
    hashes = sorted({f"{row['hash']:064x}" for row in pretraining_pictures})
    (args.out / "pretraining.json").write_text(json.dumps({
        "concepts": sorted({row["concept"] for row in pretraining_pictures}),
        "texts": sorted({row["text"] for row in pretraining_pictures}),
        "pictures": hashes, "synsets_left_out": left_out}) + "\n")  # fmt: skip
    write_parquet([row | {"id": n, "part": "public"} for n, row in enumerate(pretraining_pictures)], features(),
                  args.cache / PRETRAINING_LEXICON)  # fmt: skip
    write_parquet(judge_pictures(sides, shown), features(), args.cache / JUDGE_LEXICON)
    (args.cache / PRETRAINING_TEXTS).write_text(json.dumps(pretraining_texts) + "\n")
    credits = {s: credit(modules / p) | {"package": p} for s, p in {**EMOJI_STYLES, "game-icons": ICONS}.items()}
    (args.out / "README.md").write_text(lexicon_card(rows, list(NAMES), credits, version(modules / TEXTS)))
    print(f"{len(shown)} pictures, {len(told)} definitions; {len(pretraining_pictures)} pictures and"
          f" {len(pretraining_texts)} definitions for pre-training")  # fmt: skip


if __name__ == "__main__":
    main()
