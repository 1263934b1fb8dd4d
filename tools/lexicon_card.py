"""The data card of the lexicon (README.md with the hub's front matter)."""

from collections import Counter

from data_cards import FRONT, table

BAG_OF_WORDS = [[150, "43.5 %"], [300, "53.1 %"], [600, "64.3 %"], [1200, "74.4 %"], [2000, "80.3 %"]]
HEADROOM = [
    ["un-tuned", "62.0 %", 31, 100, 81, 12, 94, 88, 100, 100, 6, 100, 25, 6],
    ["centralised", "82.3 %", 44, 88, 81, 88, 94, 81, 75, 100, 56, 100, 100, 81],
]
SPLITS = ("train", "validation", "test")


def counted(rows: list[dict], classes: list[str], part: str, text: bool) -> list[list]:
    chosen = [row for row in rows if row["part"] == part and (row["image"] is None) == text]
    counts = Counter((row["label"], row["split"]) for row in chosen)
    body = [[name, *(counts[n, split] for split in SPLITS)] for n, name in enumerate(classes)]
    return [*body, ["all", *(sum(line[1 + k] for line in body) for k in range(len(SPLITS)))]]


def sources(rows: list[dict], credits: dict[str, dict]) -> list[list]:
    counts = Counter((row["style"], row["part"]) for row in rows)
    return [
        [style, counts[style, "private"], counts[style, "public"], f"`{c['package']}` {c['version']}", c["name"],
         c["author"], f"[{c['licence']}]({c['licence_url']})", c["source"]]
        for style, c in credits.items()
    ]  # fmt: skip


def lexicon_card(rows: list[dict], classes: list[str], credits: dict[str, dict], texts_version: str) -> str:
    pictures = sum(row["image"] is not None for row in rows)
    head = ["class", *SPLITS]
    where = ["style", "private", "public", "npm package", "set", "author", "licence", "source"]
    return (
        FRONT.format(name="Lexicon: pictures and definitions of twelve classes", licence="cc-by-sa-4.0")
        + f"""
# Lexicon: pictures and definitions of twelve classes

{pictures:,} drawings (32x32 RGB on white, lossless WebP) and {len(rows) - pictures:,} dictionary definitions in
{len(classes)} classes. Built by `tools/build_lexicon.py` from emoji and icon sets and from WordNet 3.0.

Columns: `id` (unique over all splits), `image` (null for a definition), `text` (a picture's name, or a definition),
`tags`, `label` (class), `concept` (an emoji's code points, `icon:` and a name, or `wordnet:` and a synset), `style`,
`part` (`private` rows are the clients', `public` ones everybody's) and `modality` (`text`: a definition; `pair`: a
picture with its name). Image clients use private pictures, text clients private definitions. `classes.json` names the
classes in order.

## Public and private concepts are apart

- An emoji is public if the mini models' first training saw it (the training concepts of the data set `emoji`), and
  private otherwise. A private emoji is left out when the noun in its name is a public picture's noun: with the
  public cat goes the crying cat. Nouns as general as a class (tree, food) are no concept.
- Icons are public or left out. Those whose noun is a public picture's are in training; some with a noun of their own,
  drawn by lot, are the public pairs of validation and test, which no model has been trained on.
- A definition is private if no word of its synset names a public picture, if it has five words or more, and if none
  of them tells the class ("bird", "garment"; `tools/lexicon_classes.py`); at most 480 of a class are. All other
  synsets are public and pre-train the text backbones, except those that share a word with a private one.
- A private picture that is nearly the same as a public one (6 bits of a 256-bit difference hash) is left out.
- Private rows are dealt to the splits by rows, stratified by class: a concept may be in training and in test in two
  styles, as breeds and makes are in photographs.

`pretraining.json` lists what may pre-train a model: concepts, names and hashes of public pictures, and the synsets that
are left out of the texts. `tests/test_leaks.py` holds all files and models to it.

## Pictures: private

{table(head, counted(rows, classes, "private", text=False))}
## Definitions: private

{table(head, counted(rows, classes, "private", text=True))}
## Pictures: public

{table(head, counted(rows, classes, "public", text=False))}
## How hard the texts are

TF-IDF of words and word pairs with logistic regression (`tools/measure_lexicon.py`, five draws of the training rows):

{table(["training rows", "right on test"], BAG_OF_WORDS)}
The test split has about 2,000 definitions and 600 pictures: an accuracy of 60 % has a standard error of 1.1 and 2.0
points.

## The generator's headroom

`tools/measure_headroom.py`: pictures of the class prompts by `assets/models/mini-sd`, before any tuning and after 250
steps on all private training pictures (the centralised bound), as `judges/lexicon-private` sees them; 16 pictures a
class, so a standard error of 3.5 and 2.8 points. The judge is right for 78.6 % of the real test pictures.

{table(["", "all", *classes], HEADROOM)}
The mini models know eight of the class names from the data set `emoji`, in half of their prompts, and insect, food,
emotion and sky only in passing, from tags and names.

## Sources, licences and attribution

{table(where, sources(rows, credits))}
Names, tags and subgroups of emoji: `emojibase-data` {texts_version} by Miles Johnson, MIT, after Unicode CLDR.
Definitions: WordNet 3.0, Copyright 2006 by Princeton University, all rights reserved; the licence allows use, copying
and changes for any purpose without fee, with this notice and its disclaimer (Debian's package `wordnet-base`,
/usr/share/doc/wordnet-base/copyright).

Each picture stays under its own style's licence, given above; the pictures were rendered to 32x32 pixels, which is the
change that CC BY and CC BY-SA ask to name. Taken as a whole the collection is under CC BY-SA 4.0, because OpenMoji is.

## Limits

Drawings, not photographs. Unicode's grouping decides an emoji's class, so some borders are odd (a teapot is food, a
lipstick is clothing). Pictures are few (emoji are few), so a picture client has about 150 rows. The classes of icons
and of definitions follow from WordNet's hypernyms, and a few are wrong.
"""
    )
