"""The data cards (README.md with the hub's front matter) of the two embedded data sets."""

from collections import Counter

FRONT = """---
pretty_name: {name}
license: {licence}
task_categories: [image-classification, text-to-image]
language: [en]
configs:
- config_name: default
  data_files:
  - {{split: train, path: train.parquet}}
  - {{split: validation, path: validation.parquet}}
  - {{split: test, path: test.parquet}}
---
"""


def table(head: list[str], lines: list[list]) -> str:
    ruled = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in ruled) + "\n"


def class_counts(rows: list[dict], classes: list[str], part: str) -> list[list]:
    counts = Counter((row["label"], row["split"]) for row in rows if row["part"] == part)
    splits = ("train", "validation", "test")
    body = [[i, name, *(counts[i, split] for split in splits)] for i, name in enumerate(classes)]
    return [*body, ["", "all", *(sum(line[2 + k] for line in body) for k in range(3))]]


def emoji_card(rows: list[dict], classes: list[str], credits: dict[str, dict], texts_version: str) -> str:
    styles = Counter(row["style"] for row in rows)
    parts = {row["style"]: row["part"] for row in rows}
    sources = [
        [style, parts[style], styles[style], f"`{c['package']}` {c['version']}", c["name"], c["author"],
         f"[{c['licence']}]({c['licence_url']})", c["source"]]
        for style, c in credits.items()
    ]  # fmt: skip
    head = ["style", "part", "images", "npm package", "set", "author", "licence", "source"]
    counted = ["label", "class", "train", "validation", "test"]
    return (
        FRONT.format(name="Emoji in eight styles", licence="cc-by-sa-4.0")
        + f"""
# Emoji in eight styles

{len(rows):,} drawings of emoji, 32x32 RGB on white, with their English label and tags, in {len(classes)} classes
made from Unicode's subgroups. Rendered from SVG by `tools/build_emoji.py`; nothing else was changed.

Columns: `id` (unique over all splits), `image` (WebP), `text` (label), `tags`, `label` (class), `concept` (code
points), `style`, `part` (`public` styles pre-train the mini models, `private` styles are the clients' domain).
`classes.json` names the classes in order.

Splits go by concept, 70/10/20, stratified by class: an emoji is on one side only, in whatever style, together with
its variants (joined sequences of the same base). Skin tones are left out. Validation and test concepts are kept out
of all pre-training.

## Sources, licences and attribution

{table(head, sources)}
Labels, tags and subgroups: `emojibase-data` {texts_version} by Miles Johnson, MIT, after Unicode CLDR.

Each picture stays under its own style's licence, given above; the pictures were rendered to 32x32 pixels, which is the
change that CC BY and CC BY-SA ask to name. Taken as a whole the collection is under CC BY-SA 4.0, because OpenMoji is.

## Counts: private styles

{table(counted, class_counts(rows, classes, "private"))}
## Counts: public styles

{table(counted, class_counts(rows, classes, "public"))}
## Limits

Drawings, not photographs; 32 pixels lose fine detail. Classes are Unicode's grouping, so some borders are odd (a
snowman is weather). Fluent (public) and Fluent flat (private) are two renderings of one vendor's designs, and share
outlines. Small classes (boat, reptile) have one validation concept.
"""
    )


def fashion_card(counts: dict[str, int], classes: list[str]) -> str:
    return (
        FRONT.format(name="Fashion-MNIST for federations", licence="mit")
        + f"""
# Fashion-MNIST, the federated part

Fashion-MNIST by Han Xiao, Kashif Rasul and Roland Vollgraf (Zalando Research), MIT licence, from Debian's package
`dataset-fashion-mnist`; padded with black from 28x28 to 32x32 by `tools/build_fashion.py`. The PNG bytes are grey to
keep the files small; the column is declared `Image(mode="RGB")`, so `datasets` decodes RGB pictures.

{table(["split", "images", "from"], [
    ["train", f"{counts['train']:,}", "official training images, class-balanced"],
    ["validation", f"{counts['validation']:,}", "official training images, class-balanced"],
    ["test", f"{counts['test']:,}", "the first of the official test images"],
])}
The 20,000 official training images that pre-train the mini models (the public part) are in none of the splits and are
not shipped; the build script leaves them in its cache.

Columns: `id`, `image`, `text` (class name), `label`, `part` (always `private`). Classes: {", ".join(classes)}.

Copyright (c) 2017 Zalando SE. MIT licence, https://opensource.org/license/mit
"""
    )  # fmt: skip
