"""Builds the emoji data set: icons of eight styles at 32x32 with emojibase's texts, split by concept.

Writes assets/data/emoji (the 24 classes, all styles) and, into the cache, pretraining_emoji.parquet: all emoji of
the public styles, those outside the 24 classes too (label -1), without any validation or test concept.
"""

import argparse
import json
import random
from multiprocessing import Pool
from pathlib import Path

from data_cards import emoji_card
from dataset_files import PRETRAINING_EMOJI, features, write_parquet
from icon_sets import Finder, plain_code, rendered_png, small
from npm_packages import PUBLIC_STYLES, STYLES, TEXTS, credit, read_json, unpack, version
from rich.progress import track

SPLIT_SEED = "emoji concept split"  # a named seed: random.Random hashes the text itself, on every platform alike
SHARES = {"validation": 0.10, "test": 0.20}  # the rest trains
CLASSES = {
    "mammal": ("animal-mammal", "cat-face", "monkey-face"),
    "bird": ("animal-bird",),
    "sea animal": ("animal-marine",),
    "bug": ("animal-bug",),
    "reptile": ("animal-reptile", "animal-amphibian"),
    "plant": ("plant-flower", "plant-other"),
    "fruit": ("food-fruit",),
    "vegetable": ("food-vegetable",),
    "meal": ("food-prepared", "food-asian"),
    "dessert": ("food-sweet",),
    "drink": ("drink",),
    "building": ("place-building", "place-religious"),
    "vehicle": ("transport-ground",),
    "boat": ("transport-water",),
    "aircraft": ("transport-air",),
    "weather": ("sky-weather",),
    "clock": ("time",),
    "clothing": ("clothing",),
    "sport": ("sport",),
    "musical instrument": ("musical-instrument",),
    "tool": ("tool",),
    "face": None,  # face-* but costume
    "hand": None,  # hand-* and hands
    "heart": ("heart",),
}


def label_of(subgroup: str) -> int:
    """Index of the class a Unicode subgroup belongs to, or -1."""
    if subgroup.startswith("face-") and subgroup != "face-costume":
        return list(CLASSES).index("face")
    if subgroup.startswith("hand-") or subgroup == "hands":
        return list(CLASSES).index("hand")
    return next((i for i, groups in enumerate(CLASSES.values()) if groups and subgroup in groups), -1)


def base_concept(hexcode: str) -> str:
    """'1F43B-200D-2744-FE0F' (polar bear) -> '1f43b' (bear): a variant stands on its base's side of the split."""
    return plain_code(hexcode).split("-")[0]


def concepts(modules: Path) -> list[dict]:
    """All emoji with a label; skin tones live under 'skins' and are left out, as are flags' regional letters."""
    package = modules / TEXTS
    subgroups = read_json(package / "meta/groups.json")["subgroups"]
    found = []
    for emoji in read_json(package / "en/data.json"):
        subgroup = subgroups.get(str(emoji.get("subgroup")))
        if subgroup and subgroup != "skin-tone":
            found.append({**emoji, "class": label_of(subgroup), "base": base_concept(emoji["hexcode"])})
    return sorted(found, key=lambda emoji: emoji["order"])


def split_by_concept(emojis: list[dict]) -> dict[str, str]:
    """base concept -> split, stratified by class; every split gets at least one concept of every class."""
    bases: dict[int, list[str]] = {}
    placed = set()
    for emoji in emojis:
        if emoji["class"] >= 0 and emoji["base"] not in placed:
            placed.add(emoji["base"])
            bases.setdefault(emoji["class"], []).append(emoji["base"])
    split = {}
    for label, names in sorted(bases.items()):
        shuffled = sorted(names)
        random.Random(f"{SPLIT_SEED} {label}").shuffle(shuffled)
        cut = 0
        for name, share in SHARES.items():
            size = max(1, round(share * len(shuffled)))
            split |= dict.fromkeys(shuffled[cut : cut + size], name)
            cut += size
        split |= dict.fromkeys(shuffled[cut:], "train")
    return split


def picture(job: tuple[dict, str]) -> dict | None:
    row, svg = job
    return {**row, "image": {"bytes": small(rendered_png(svg)), "path": None}}


def rows(modules: Path) -> list[dict]:
    """One row per emoji and style that has it, with its split."""
    emojis, finder = concepts(modules), Finder(modules)
    split = split_by_concept(emojis)
    jobs = []
    for emoji in emojis:
        for style in STYLES:
            name = finder.icon(style, emoji)
            if name is None:
                continue
            row = {"text": emoji["label"], "tags": emoji.get("tags", []), "label": emoji["class"]}
            row |= {"concept": emoji["hexcode"], "style": style, "split": split.get(emoji["base"], "train")}
            row |= {"part": "public" if style in PUBLIC_STYLES else "private"}
            jobs.append((row, finder.svg(style, name)))
    with Pool() as pool:
        drawn = pool.imap(picture, jobs, chunksize=64)
        return [{"id": i, **row} for i, row in enumerate(track(drawn, "drawing emoji", total=len(jobs)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--out", type=Path, default=Path("assets/data/emoji"))
    args = parser.parse_args()

    modules = unpack(args.cache)
    drawn = rows(modules)
    classes = list(CLASSES)
    args.out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        kept = [row for row in drawn if row["split"] == split and row["label"] >= 0]
        write_parquet(kept, features(), args.out / f"{split}.parquet")
    (args.out / "classes.json").write_text(json.dumps([{"name": name} for name in classes], indent=1) + "\n")
    credits = {style: credit(modules / package) | {"package": package} for style, package in STYLES.items()}
    shipped = [row for row in drawn if row["label"] >= 0]
    (args.out / "README.md").write_text(emoji_card(shipped, classes, credits, version(modules / TEXTS)))
    public = [row for row in drawn if row["part"] == "public" and row["split"] == "train"]
    write_parquet(public, features(), args.cache / PRETRAINING_EMOJI)
    print(f"{len(shipped)} pictures of {len(classes)} classes in {args.out}; {len(public)} for pre-training")


if __name__ == "__main__":
    main()
