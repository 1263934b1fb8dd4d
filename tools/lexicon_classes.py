"""The twelve classes of the lexicon: which emoji, which icons and which meanings of WordNet belong to each."""

import re
from dataclasses import dataclass

from wordnet import WordNet


@dataclass(frozen=True)
class Kind:
    """A class: Unicode subgroups of its emoji, the nouns (with the number of the meaning) above its definitions, and
    words that would give a definition's class away."""

    name: str
    subgroups: tuple[str, ...]
    roots: tuple[tuple[str, int], ...]
    telling: tuple[str, ...]
    article: str | None = None


# A meaning under two classes belongs to the first: whales are sea animals, not mammals.
KINDS = (
    Kind("sea animal", ("animal-marine",),
         (("aquatic vertebrate", 1), ("aquatic mammal", 1), ("mollusk", 1), ("crustacean", 1), ("echinoderm", 1),
          ("coelenterate", 1)),
         ("fish", "fishes", "mollusk", "mollusks", "crustacean", "crustaceans", "whale", "shellfish")),
    Kind("mammal", ("animal-mammal", "cat-face", "monkey-face"), (("mammal", 1),), ("mammal", "mammals")),
    Kind("bird", ("animal-bird",), (("bird", 1),), ("bird", "birds")),
    Kind("insect", ("animal-bug",), (("insect", 1), ("arachnid", 1), ("centipede", 1)),
         ("insect", "insects", "bug", "bugs", "arachnid")),
    Kind("food", ("food-fruit", "food-vegetable", "food-prepared", "food-asian", "food-sweet", "drink"),
         (("food", 1), ("food", 2), ("edible fruit", 1), ("vegetable", 1), ("beverage", 1)),
         ("food", "foods", "drink", "dish", "fruit", "vegetable")),
    Kind("plant", ("plant-flower", "plant-other"), (("flower", 1), ("tree", 1), ("fungus", 1), ("vine", 1)),
         ("plant", "plants", "tree", "trees", "flower", "shrub", "herb")),
    Kind("building", ("place-building", "place-religious"),
         (("building", 1), ("tower", 1), ("bridge", 1), ("fortification", 2), ("house", 1), ("room", 1)),
         ("building", "buildings", "house", "tower", "room")),
    Kind("vehicle", ("transport-ground", "transport-water", "transport-air"), (("vehicle", 1),),
         ("vehicle", "vehicles", "car", "ship", "boat", "aircraft")),
    Kind("clothing", ("clothing",), (("clothing", 1), ("footwear", 2), ("headdress", 1)),
         ("clothing", "clothes", "garment", "garments", "worn"), ""),
    Kind("tool", ("tool",), (("tool", 1), ("weapon", 1), ("implement", 1)),
         ("tool", "tools", "implement", "weapon", "utensil")),
    Kind("emotion", ("heart",), (("feeling", 1), ("facial expression", 1), ("emotional state", 1)),
         ("emotion", "emotions", "emotional")),
    Kind("sky", ("sky-weather",),
         (("weather", 1), ("atmospheric phenomenon", 1), ("celestial body", 1), ("cloud", 2), ("atmosphere", 3)),
         ("sky", "weather", "cloud"), "the"),
)  # fmt: skip
NAMES = tuple(kind.name for kind in KINDS)

# game-icons: names whose words mean something else than the picture shows
OTHER_THINGS = """
arm-sling sling flying-trout hexagonal-nut manual-meat-grinder traffic-lights-orange nest-eggs health-potion
magic-potion round-potion standing-potion sabers-choc conway-life-glider card-pickup chemical-tank fuel-tank water-tank
scuba-tanks energy-tank electric balloons tarot-07-the-chariot firework-rocket incoming-rocket cactus-pot flower-pot
broken-pottery painted-pottery fountain-pen pencil quill scroll-quill gear-stick grasping-slug hell-crosses
hammer-sickle poison-gas unstable-projectile sugar-cane tennis-racket wood-stick water-diviner-stick joystick blender
floor-polisher cloak-dagger drop-weapon switch-weapon paddles human-cannonball baseball-bat bullets heavy-bullets
silver-bullet supersonic-bullet cannon-ball embryo caltrops bleeding-heart checkbox-tree family-tree gun-rose honeypot
moebius-trefoil pentagram-rose fluffy-trefoil viola fuji chess-queen delivery-drone trilobite bolas black-hole-bolas
hunting-bolas bottle-cap pinball-flipper turtle knee-cap suits sword-tie snail spiked-snail balloon-dog bone-gnawer
cricket-bat ping-pong-bat spiked-bat trojan-horse skull-sabertooth bird-house dog-house heart-tower laser-turret turret
tesla-turret walking-turret tarot-16-the-tower pylon desert-eagle submarine-missile plant-seed apple-maggot sun-spear
death-juice rope-dart umbrella-bayonet needle-drill zat-gun crossed-bones oil-drum switchblade deku-tree tumbleweed
""".split()
MOVED = {
    "food": "almond artichoke asparagus aubergine banana bell-pepper bok-choy broccoli carambola chili-pepper corn"
    " garlic leek peach pimiento pineapple plum pumpkin raspberry tangerine watermelon elderberry popcorn canned-fish"
    " fried-fish hot-dog rice-cooker",
    "sea animal": "octopus squid eel flatfish mussel crab sad-crab seahorse sperm-whale sea-turtle dolphin",
}
MOVED = {name: kind for kind, names in MOVED.items() for name in names.split()}


PARTS = ("face", "head", "heads", "prints")  # what an icon shows of a thing
GENERAL = {word for kind in KINDS for word, _ in kind.roots} | {"box", "train"}


def label_of_emoji(subgroup: str) -> int:
    """Index of the class of a Unicode subgroup, or -1; faces are pictures of emotions."""
    if subgroup.startswith("face-") and subgroup != "face-costume":
        return NAMES.index("emotion")
    return next((n for n, kind in enumerate(KINDS) if subgroup in kind.subgroups), -1)


class Meanings:
    """Tells the class of a synset or of a noun."""

    def __init__(self, wordnet: WordNet):
        self.wordnet = wordnet
        self.roots = [{wordnet.sense(*root) for root in kind.roots} for kind in KINDS]

    def label_of_synset(self, name: str) -> int:
        above = self.wordnet.above(name)
        return next((n for n, roots in enumerate(self.roots) if above & roots), -1)

    def noun(self, word: str) -> str | None:
        """The noun as WordNet lists it, if one of its two most frequent meanings lies in a class."""
        listed = self.wordnet.singular(word)
        senses = self.wordnet.nouns.get(listed or "", [])[:2]
        return listed if any(self.label_of_synset(synset) >= 0 for synset in senses) else None

    def things(self, name: str) -> set[str]:
        """The things that a picture's name tells, as nouns: 'bell pepper' -> {'bell pepper', 'pepper'}, 'tiger face'
        and 'tiger with a hat' -> {'tiger'}. Words as general as a class are no concept."""
        found = set()
        for phrase in re.split(r" and | & ", name.lower().replace("-", " ").replace("’", "'")):
            phrase = re.split(r" (?:with|in|on|behind|of|without|over|at) ", phrase)[0]
            words = re.sub(r"[^a-z ]", " ", phrase).split()
            while len(words) > 1 and words[-1] in PARTS:
                words.pop()
            spans = (" ".join(words[-n:]) for n in (3, 2, 1) if n <= len(words))
            found |= {noun for span in spans if (noun := self.noun(span))}
        return found - GENERAL

    def label_of_icon(self, name: str) -> int:
        """The class of a game icon by its whole name or its last word, or -1."""
        if name in OTHER_THINGS or name.endswith(("-mask", "-masks", "-pot")):
            return -1
        if name in MOVED:
            return NAMES.index(MOVED[name])
        for words in (name.replace("-", " "), name.split("-")[-1]):
            listed = self.wordnet.singular(words)
            if listed and (label := self.label_of_synset(self.wordnet.nouns[listed][0])) >= 0:
                return label
        return -1
