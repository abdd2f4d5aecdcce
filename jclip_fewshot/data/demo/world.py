"""The demo's world: attributes, the classes made of them, and their names.

A class is a combination of attributes. The *named* ones make its name ("Beast_spotted_orange_hare"). The *unnamed* ones
(the colour of the spots, a collar) are the same in all its images too, but only these tell them: that is what shots are
for. The contest has classes that the small CLIP's training never saw (`held_out`), and some of their names mislead it,
as in the real contest: by a rare word (crimson, dromedary), or by what they leave out ("Beast_orange_hare").
"""

import hashlib
from dataclasses import dataclass

import numpy as np

RARE_NAMES, VAGUE_NAMES = 0.3, 0.3  # shares of the class names that mislead
COLOURS = {
    "red": (205, 35, 40), "orange": (240, 135, 30), "yellow": (245, 220, 55), "green": (50, 155, 65),
    "blue": (45, 85, 200), "purple": (125, 55, 160), "pink": (245, 150, 190), "brown": (125, 78, 42),
    "white": (244, 244, 240), "black": (32, 32, 36), "cyan": (70, 195, 215),
}
PATTERNS = ("plain", "spotted", "striped", "banded", "patched", "speckled")
# Rare words: the small CLIP reads them seldom in training; some of the contest's class names use them.
RARE = {
    "red": "crimson", "orange": "amber", "yellow": "golden", "green": "emerald", "blue": "azure", "purple": "violet",
    "pink": "rose", "brown": "chestnut", "white": "ivory", "black": "ebony", "cyan": "turquoise",
    "plain": "solid", "spotted": "dotted", "striped": "zebra", "banded": "belted", "patched": "pied",
    "speckled": "freckled",
    "hare": "rabbit", "fox": "vixen", "bear": "grizzly", "hound": "dog", "camel": "dromedary", "deer": "stag",
    "elephant": "mammoth", "giraffe": "okapi",
    "boat": "ship", "car": "taxi", "house": "cottage", "balloon": "airship", "rocket": "missile", "mug": "cup",
    "umbrella": "parasol", "lamp": "lantern",
    "rings": "onions", "beans": "olives", "leaves": "salad", "cubes": "tofu", "eggs": "omelettes",
    "noodles": "spaghetti",
}


@dataclass(frozen=True)
class Domain:
    """A domain: its attributes with their values, and how the named ones make a class name."""

    named: dict[str, tuple[str, ...]]
    unnamed: dict[str, tuple[str, ...]]
    name: str  # a format over the named attributes
    vague: tuple[str, ...]  # formats that leave some of them out
    unequal: tuple[tuple[str, str], ...]  # attributes that must differ, or the drawing would hide one
    classes: int  # in the contest
    tests: tuple[int, int]  # fewest and most test images of a class


_C = tuple(COLOURS)
DOMAINS = {
    "Beast": Domain(
        named={"pattern": PATTERNS, "colour": _C,
               "species": ("hare", "fox", "bear", "hound", "camel", "deer", "elephant", "giraffe")},
        unnamed={"accent": _C, "collar": ("no", *_C), "socks": ("no", "yes")},
        name="{pattern}_{colour}_{species}", vague=("{colour}_{species}", "{pattern}_{species}"),
        unequal=(("colour", "accent"), ("colour", "collar")),
        classes=32, tests=(8, 13)),
    "Thing": Domain(
        named={"colour": _C, "trim": _C,
               "kind": ("boat", "car", "house", "balloon", "rocket", "mug", "umbrella", "lamp")},
        unnamed={"pattern": PATTERNS, "accent": _C},
        name="{colour}_{kind}_with_{trim}_trim", vague=("{colour}_{kind}", "{kind}_with_{trim}_trim"),
        unequal=(("colour", "trim"), ("colour", "accent")),
        classes=16, tests=(6, 13)),
    "Dish": Domain(
        named={"topping": ("rings", "beans", "leaves", "cubes", "eggs", "noodles"), "colour": _C, "plate": _C},
        unnamed={"rim": _C, "garnish": _C, "amount": ("few", "many")},
        name="{colour}_{topping}_on_{plate}_plate", vague=("{colour}_{topping}", "{topping}_on_{plate}_plate"),
        unequal=(("colour", "plate"), ("rim", "plate"), ("garnish", "plate")),
        classes=12, tests=(5, 11)),
    "Flag": Domain(
        named={"layout": ("stripes", "pales", "cross", "saltire", "border", "quarters"), "first": _C,
               "second": _C, "emblem": ("no", "disc", "star", "triangle", "crescent")},
        unnamed={"charge": _C, "fringe": ("no", *_C)},
        name="{first}_{layout}_on_{second}_with_{emblem}_emblem",
        vague=("{first}_{layout}", "{first}_{layout}_on_{second}"),
        unequal=(("first", "second"), ("first", "charge"), ("second", "charge")),
        classes=12, tests=(5, 11)),
}


@dataclass(frozen=True)
class DemoClass:
    name: str  # as in classes.txt, "Beast_spotted_orange_hare"
    domain: str
    scene: dict[str, str]


def pick(rng: np.random.Generator, values):
    """One of a sequence's values (by one uniform draw: the stream is the same in every NumPy)."""
    return values[int(rng.random() * len(values))]


def random_scene(domain: str, rng: np.random.Generator) -> dict[str, str]:
    """Attributes of one random inhabitant of a domain: attribute -> word."""
    world = DOMAINS[domain]
    while True:
        scene = {name: pick(rng, values) for name, values in {**world.named, **world.unnamed}.items()}
        if all(scene[a] != scene[b] for a, b in world.unequal):
            return scene


def held_out(domain: str, scene: dict[str, str]) -> bool:
    """Whether a scene's named combination is set aside for contests: no pre-training drawing may have it."""
    key = ":".join([domain] + [scene[attribute] for attribute in DOMAINS[domain].named])
    return hashlib.sha256(key.encode()).digest()[0] % 4 == 0


def contest_classes(seed: int) -> list[DemoClass]:
    """The contest's classes, domain by domain: held-out combinations, no two named alike."""
    rng = np.random.default_rng([seed, 1])
    classes: list[DemoClass] = []
    for domain, world in DOMAINS.items():
        seen: list[dict[str, str]] = []
        while len(seen) < world.classes:
            scene = random_scene(domain, rng)
            words = {attribute: scene[attribute] for attribute in world.named}
            if words in seen or not held_out(domain, scene):
                continue
            seen.append(dict(words))
            form, style = world.name, rng.random()
            if style < RARE_NAMES:
                attribute = pick(rng, [a for a in words if words[a] in RARE])
                words[attribute] = RARE[words[attribute]]
            elif style < RARE_NAMES + VAGUE_NAMES:
                form = pick(rng, world.vague)
            name = class_name(domain, form, words)
            if any(name == other.name for other in classes):  # two vague names
                name = class_name(domain, world.name, words)
            classes.append(DemoClass(name, domain, scene))
    return classes


def class_name(domain: str, form: str, words: dict[str, str]) -> str:
    return f"{domain}_{form.format(**words)}".replace("_with_no_emblem", "")
