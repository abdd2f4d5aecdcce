"""The built-in contest: a small drawn world in the contest's own layout, and a small CLIP to go with it.

The world is compositional. A class is a combination of attributes: a Beast has a pattern, a colour and a
species, a Thing a colour, a trim and a kind, a Dish a topping and a plate, a Flag a layout, two colours and
an emblem. These *named* attributes make the class's name ("Beast_spotted_orange_hare"). Further *unnamed*
ones (the colour of the spots, a collar, the rim of the plate) are the same in every image of a class too,
but only its images tell them: that is what shots are for. All else (pose, size, light, background, clutter,
noise) differs from image to image.

A quarter of all named combinations is set aside (`held_out`). The small CLIP, weights/demo_clip.safetensors,
was trained by tools/train_demo_clip.py on drawings of the other three quarters; the contest takes its classes
from the quarter that is set aside. Some class names use a rare word (crimson, pied, dromedary) that the CLIP
saw seldom, others are vague ("Beast_orange_hare"): they mislead it, as some of the real contest's names do.
Half of the test images are Beasts, the domain with the most classes, as dogs are in the contest.

Everything is drawn from a seed with NumPy's generator and Pillow's polygons: no fonts, no downloads.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Tuple, Union

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from . import ranks
from .config import TrainConfig
from .errors import UserError
from .files import write_text
from .progress import progress

CHECKPOINT = Path(__file__).resolve().parent.parent / "weights" / "demo_clip.safetensors"
SEED = 1
COMPLETE = "complete.txt"
EDITION = "demo contest, edition 1, seed {}"  # a contest of another edition or seed is drawn again
RARE_NAMES, VAGUE_NAMES = 0.3, 0.3  # shares of the class names that mislead
TRAIN_IMAGES = 8  # a class; the default 4 shots are chosen from these

COLOURS = {
    "red": (205, 35, 40), "orange": (240, 135, 30), "yellow": (245, 220, 55), "green": (50, 155, 65),
    "blue": (45, 85, 200), "purple": (125, 55, 160), "pink": (245, 150, 190), "brown": (125, 78, 42),
    "white": (244, 244, 240), "black": (32, 32, 36), "cyan": (70, 195, 215),
}
PATTERNS = ("plain", "spotted", "striped", "banded", "patched", "speckled")

# Rare words: the small CLIP reads them seldom in training; some of the contest's class names use them.
RARE = {
    "red": "crimson", "orange": "amber", "yellow": "golden", "green": "emerald", "blue": "azure",
    "purple": "violet", "pink": "rose", "brown": "chestnut", "white": "ivory", "black": "ebony",
    "cyan": "turquoise",
    "plain": "solid", "spotted": "dotted", "striped": "zebra", "banded": "belted", "patched": "pied",
    "speckled": "freckled",
    "hare": "rabbit", "fox": "vixen", "bear": "grizzly", "hound": "dog", "camel": "dromedary", "deer": "stag",
    "elephant": "mammoth", "giraffe": "okapi",
    "boat": "ship", "car": "taxi", "house": "cottage", "balloon": "airship", "rocket": "missile",
    "mug": "cup", "umbrella": "parasol", "lamp": "lantern",
    "rings": "onions", "beans": "olives", "leaves": "salad", "cubes": "tofu", "eggs": "omelettes",
    "noodles": "spaghetti",
}


@dataclass(frozen=True)
class Domain:
    """One domain of the world: its attributes with their values, and how the named ones make a class name."""

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
        unnamed={"accent": _C, "collar": ("no",) + _C, "socks": ("no", "yes")},
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
        named={"topping": ("rings", "beans", "leaves", "cubes", "eggs", "noodles"), "colour": _C,
               "plate": _C},
        unnamed={"rim": _C, "garnish": _C, "amount": ("few", "many")},
        name="{colour}_{topping}_on_{plate}_plate",
        vague=("{colour}_{topping}", "{topping}_on_{plate}_plate"),
        unequal=(("colour", "plate"), ("rim", "plate"), ("garnish", "plate")),
        classes=12, tests=(5, 11)),
    "Flag": Domain(
        named={"layout": ("stripes", "pales", "cross", "saltire", "border", "quarters"), "first": _C,
               "second": _C, "emblem": ("no", "disc", "star", "triangle", "crescent")},
        unnamed={"charge": _C, "fringe": ("no",) + _C},
        name="{first}_{layout}_on_{second}_with_{emblem}_emblem",
        vague=("{first}_{layout}", "{first}_{layout}_on_{second}"),
        unequal=(("first", "second"), ("first", "charge"), ("second", "charge")),
        classes=12, tests=(5, 11)),
}


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


@dataclass(frozen=True)
class DemoClass:
    """A class of the demo contest."""

    name: str  # as in classes.txt, "Beast_spotted_orange_hare"
    domain: str
    scene: dict[str, str]


def contest_classes(seed: int) -> list[DemoClass]:
    """The contest's classes, domain by domain: held-out combinations, no two named alike."""
    rng = np.random.default_rng([seed, 1])
    classes = []
    for domain, world in DOMAINS.items():
        seen = set()
        while len(seen) < world.classes:
            scene = random_scene(domain, rng)
            key = tuple(scene[attribute] for attribute in world.named)
            if key in seen or not held_out(domain, scene):
                continue
            seen.add(key)
            words = {attribute: scene[attribute] for attribute in world.named}
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
    """Words to a name as in classes.txt."""
    return f"{domain}_{form.format(**words)}".replace("_with_no_emblem", "")


class Pen:
    """Draws polygons in the object's own coordinates, -1..1 with y upwards, on a canvas in pixels."""

    def __init__(self, image: Image.Image, centre, scale: float, turn: float, mirror: bool, squash: float):
        self.image = image
        self.draw = ImageDraw.Draw(image)
        c, s = math.cos(turn) * scale, math.sin(turn) * scale
        m = -1.0 if mirror else 1.0
        self.matrix = (c * m, s * squash, s * m, -c * squash)
        self.centre = centre

    def on(self, image: Image.Image) -> "Pen":
        """The same map on another canvas of the same size."""
        pen = object.__new__(Pen)
        pen.image, pen.draw, pen.matrix, pen.centre = image, ImageDraw.Draw(image), self.matrix, self.centre
        return pen

    def to_pixels(self, points):
        a, b, c, d = self.matrix
        cx, cy = self.centre
        return [(cx + a * x + b * y, cy + c * x + d * y) for x, y in points]

    def polygon(self, points, colour):
        self.draw.polygon(self.to_pixels(points), fill=colour)

    def oval(self, x, y, rx, ry, colour, lean: float = 0.0):
        self.polygon(oval(x, y, rx, ry, lean), colour)

    def bar(self, x0, y0, x1, y1, width, colour):
        """A straight bar of a given width from one point to another."""
        dx, dy = x1 - x0, y1 - y0
        length = math.hypot(dx, dy) or 1.0
        nx, ny = -dy / length * width / 2, dx / length * width / 2
        self.polygon([(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)], colour)


_CIRCLE = [(math.cos(math.pi * i / 12), math.sin(math.pi * i / 12)) for i in range(24)]


def oval(x, y, rx, ry, lean=0.0):
    """An ellipse as a polygon."""
    c, s = math.cos(lean), math.sin(lean)
    return [(x + rx * u * c - ry * v * s, y + rx * u * s + ry * v * c) for u, v in _CIRCLE]


def box(x0, y0, x1, y1):
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def star(x, y, radius, points=5, inner=0.42):
    corners = []
    for i in range(2 * points):
        r = radius if i % 2 == 0 else radius * inner
        angle = math.pi / 2 + math.pi * i / points
        corners.append((x + r * math.cos(angle), y + r * math.sin(angle)))
    return corners


def patterned(pen: Pen, shapes, pattern: str, colour, accent, rng, size: float = 1.0):
    """Fills polygons with a colour and lays a pattern of the accent colour over them."""
    for shape in shapes:
        pen.polygon(shape, colour)
    if pattern == "plain":
        return
    layer = Image.new("L", pen.image.size)
    marks = pen.on(layer)
    shift = rng.random() * 0.25 * size
    if pattern == "spotted":
        step = 0.36 * size
        for row in range(-4, 5):
            for column in range(-4, 5):
                marks.oval((column + 0.5 * (row % 2)) * step + shift, row * step * 0.85 + shift,
                           0.11 * size, 0.11 * size, 255)
    elif pattern == "striped":
        for i in range(-7, 8):
            x = i * 0.25 * size + shift
            marks.bar(x, -1.5, x + 0.1, 1.5, 0.11 * size, 255)
    elif pattern == "banded":
        middle = sum(y for _, y in shapes[0]) / len(shapes[0])
        marks.bar(-1.5, middle, 1.5, middle, 0.26 * size, 255)
    elif pattern == "patched":
        for x, y in ((-0.42, 0.22), (0.28, -0.2), (0.55, 0.45), (-0.2, -0.55)):
            marks.oval((x + shift) * size, y * size, 0.27 * size, 0.2 * size, 255, lean=rng.random() * 3)
    else:  # speckled
        for _ in range(110):
            marks.oval((rng.random() * 2 - 1), (rng.random() * 2 - 1), 0.035 * size, 0.035 * size, 255)
    mask = Image.new("L", pen.image.size)
    inside = pen.on(mask)
    for shape in shapes:
        inside.polygon(shape, 255)
    both = Image.new("L", pen.image.size)
    both.paste(layer, mask=mask)
    pen.image.paste(accent, mask=both)


def draw_beast(pen: Pen, scene, paint, rng):
    """A beast in profile, looking right: legs, tail, body, neck, head, ears."""
    species = scene["species"]
    coat, accent = paint[scene["colour"]], paint[scene["accent"]]
    dark = tuple(int(0.72 * v) for v in coat)
    # body: half length, half height, centre height; neck end (x, y) is the head; leg length; head radius
    length, height, middle, hx, hy, leg, head = {
        "hare": (0.48, 0.34, -0.3, 0.5, 0.15, 0.22, 0.24),
        "fox": (0.52, 0.22, -0.2, 0.62, 0.12, 0.36, 0.2),
        "bear": (0.62, 0.42, -0.12, 0.66, 0.22, 0.38, 0.29),
        "hound": (0.55, 0.2, -0.02, 0.66, 0.36, 0.62, 0.2),
        "camel": (0.55, 0.24, -0.1, 0.84, 0.42, 0.58, 0.15),
        "deer": (0.5, 0.2, -0.1, 0.64, 0.38, 0.62, 0.16),
        "elephant": (0.6, 0.42, 0.0, 0.66, 0.2, 0.5, 0.32),
        "giraffe": (0.42, 0.2, -0.3, 0.6, 0.78, 0.5, 0.14),
    }[species]
    thick = {"bear": 0.2, "elephant": 0.22, "hare": 0.15}.get(species, 0.11)
    swing = (rng.random() - 0.5) * 0.2
    for x, side in ((-0.7, dark), (0.6, dark), (-0.85, coat), (0.78, coat)):
        foot = x * length + (swing if side is dark else -swing)
        top, bottom = middle - 0.3 * height, middle - height * 0.6 - leg
        pen.bar(x * length, top, foot, bottom, thick, side)
        if scene["socks"] == "yes":
            knee = 0.35 * x * length + 0.65 * foot
            pen.bar(knee, bottom + 0.35 * (top - bottom), foot, bottom, thick * 1.15, accent)
    back = -length
    if species == "fox":
        pen.oval(back - 0.22, middle + 0.06, 0.3, 0.12, coat, lean=-0.5)
        pen.oval(back - 0.4, middle + 0.17, 0.11, 0.08, accent, lean=-0.5)
    elif species == "hare":
        pen.oval(back, middle + 0.05, 0.13, 0.13, accent)
    elif species in ("hound", "camel", "giraffe", "elephant"):
        end = 0.35 if species == "hound" else -0.35
        pen.bar(back + 0.05, middle + 0.05, back - 0.22, middle + end, 0.07, dark)
    else:
        pen.oval(back, middle + 0.08, 0.1, 0.07, dark)
    body = [oval(0, middle, length, height)]
    if species == "camel":
        body += [oval(-0.2, middle + 0.24, 0.17, 0.22), oval(0.22, middle + 0.24, 0.17, 0.22)]
    neck = {"bear": 0.4, "elephant": 0.4, "hare": 0.26}.get(species, 0.2)
    pen.bar(length * 0.65, middle + height * 0.2, hx - 0.02, hy, neck, coat)
    patterned(pen, body, scene["pattern"], coat, accent, rng, size=0.8)
    if scene["collar"] != "no":
        dx, dy = hx - length * 0.65, hy - middle - height * 0.2  # along the neck
        x, y = length * 0.65 + 0.45 * dx, middle + height * 0.2 + 0.45 * dy
        dx, dy = 0.08 * dx / math.hypot(dx, dy), 0.08 * dy / math.hypot(dx, dy)
        pen.bar(x - dx, y - dy, x + dx, y + dy, neck * 1.3, paint[scene["collar"]])
    if species == "hare":
        pen.oval(hx - 0.12, hy + 0.42, 0.08, 0.32, dark, lean=0.25)
    if species == "bear":
        pen.oval(hx - 0.2, hy + 0.24, 0.12, 0.12, dark)
    if species == "deer":
        for lean in (-0.25, 0.18):
            pen.bar(hx - 0.05, hy + 0.1, hx + lean, hy + 0.55, 0.06, paint["brown"])
            pen.bar(hx + lean * 0.6, hy + 0.34, hx + lean * 0.6 + 0.2, hy + 0.5, 0.05, paint["brown"])
            pen.bar(hx + lean * 0.6, hy + 0.34, hx + lean * 0.6 - 0.16, hy + 0.52, 0.05, paint["brown"])
    pen.oval(hx, hy, head, head * 0.9, coat)
    snout = {"hare": 0.0, "elephant": 0.0, "bear": 0.16, "camel": 0.22, "giraffe": 0.2}.get(species, 0.26)
    if snout:
        tip = 0.05 if species == "fox" else 0.1
        pen.polygon([(hx, hy + head * 0.6), (hx + head + snout * 0.7, hy + tip - 0.08),
                     (hx + head + snout * 0.7, hy - tip - 0.06), (hx, hy - head * 0.75)], coat)
        pen.oval(hx + head + snout * 0.65, hy - 0.05, 0.06, 0.06, paint["black"])
    if species == "hare":
        pen.oval(hx + 0.02, hy + 0.46, 0.09, 0.34, coat, lean=-0.12)
        pen.oval(hx + 0.02, hy + 0.46, 0.04, 0.24, accent, lean=-0.12)
    elif species == "fox":
        pen.polygon([(hx - 0.2, hy + 0.08), (hx - 0.12, hy + 0.44), (hx + 0.04, hy + 0.14)], coat)
        pen.polygon([(hx - 0.04, hy + 0.12), (hx + 0.08, hy + 0.44), (hx + 0.18, hy + 0.08)], dark)
    elif species == "bear":
        pen.oval(hx + 0.02, hy + 0.27, 0.12, 0.12, dark)
    elif species == "hound":
        pen.oval(hx - 0.1, hy - 0.12, 0.1, 0.28, dark, lean=0.15)
    elif species == "elephant":
        for i in range(5):
            pen.bar(hx + 0.26 + 0.05 * i, hy - 0.14 * i, hx + 0.35 + 0.05 * i, hy - 0.14 * (i + 1),
                    0.15 - 0.012 * i, coat)
        pen.oval(hx - 0.16, hy + 0.0, 0.22, 0.32, dark)
    else:
        pen.oval(hx - head * 0.8, hy + head * 0.9, 0.1, 0.05, dark, lean=-0.6)
        if species == "giraffe":
            pen.bar(hx, hy, hx - 0.02, hy + 0.26, 0.05, dark)
            pen.oval(hx - 0.02, hy + 0.27, 0.05, 0.05, dark)
    pen.oval(hx + head * 0.35, hy + head * 0.3, 0.055, 0.055, paint["white"])
    pen.oval(hx + head * 0.42, hy + head * 0.3, 0.032, 0.032, paint["black"])


def draw_thing(pen: Pen, scene, paint, rng):
    """An object whose main part carries the colour and the pattern, and another part the trim."""
    kind, colour, trim = scene["kind"], paint[scene["colour"]], paint[scene["trim"]]

    def body(*shapes):
        patterned(pen, shapes, scene["pattern"], colour, paint[scene["accent"]], rng, size=0.8)

    if kind == "boat":
        pen.bar(0.0, -0.3, 0.0, 0.9, 0.06, paint["brown"])
        pen.polygon([(0.06, -0.15), (0.06, 0.85), (0.75, -0.15)], trim)
        pen.polygon([(-0.06, -0.15), (-0.06, 0.65), (-0.5, -0.15)], trim)
        body([(-0.9, -0.22), (0.95, -0.22), (0.6, -0.75), (-0.65, -0.75)])
    elif kind == "car":
        pen.polygon([(-0.55, 0.05), (-0.35, 0.5), (0.3, 0.5), (0.58, 0.05)], trim)
        body([(-0.95, -0.4), (-0.95, 0.02), (-0.8, 0.1), (0.75, 0.1), (0.95, -0.05), (0.95, -0.4)])
        for x in (-0.55, 0.55):
            pen.oval(x, -0.4, 0.23, 0.23, paint["black"])
            pen.oval(x, -0.4, 0.11, 0.11, trim)
    elif kind == "house":
        body(box(-0.65, -0.8, 0.65, 0.1))
        pen.polygon([(-0.85, 0.08), (0, 0.85), (0.85, 0.08)], trim)
        pen.polygon(box(-0.12, -0.8, 0.18, -0.3), paint["brown"])
        pen.polygon(box(0.3, -0.4, 0.52, -0.15), paint["cyan"])
    elif kind == "balloon":
        for x in (-0.2, 0.2):
            pen.bar(x, -0.65, 1.8 * x, 0.0, 0.03, paint["black"])
        body(oval(0, 0.3, 0.6, 0.62))
        pen.polygon(box(-0.24, -0.95, 0.24, -0.62), trim)
    elif kind == "rocket":
        pen.polygon([(-0.28, -0.25), (-0.65, -0.75), (-0.28, -0.6)], trim)
        pen.polygon([(0.28, -0.25), (0.65, -0.75), (0.28, -0.6)], trim)
        pen.polygon([(-0.15, -0.6), (0.0, -1.0), (0.15, -0.6)], paint["orange"])
        body(box(-0.29, -0.62, 0.29, 0.42))
        pen.polygon([(-0.29, 0.42), (0, 0.98), (0.29, 0.42)], trim)
    elif kind == "mug":
        pen.oval(0.55, -0.05, 0.36, 0.4, trim)
        pen.oval(0.55, -0.05, 0.2, 0.24, paint["ground"])
        body([(-0.6, 0.55), (0.5, 0.55), (0.44, -0.75), (-0.54, -0.75)])
        pen.oval(-0.05, 0.55, 0.55, 0.14, trim)
    elif kind == "umbrella":
        pen.bar(0, -0.8, 0, 0.3, 0.07, trim)
        pen.bar(0, -0.8, 0.22, -0.84, 0.08, trim)
        dome = [(0.95 * x, 0.05 + 0.8 * y) for x, y in _CIRCLE[:13]]
        body(dome + [(-0.63, 0.16), (-0.32, 0.03), (0, 0.16), (0.32, 0.03), (0.63, 0.16)])
        pen.bar(0, 0.8, 0, 0.98, 0.07, trim)
    else:  # lamp
        pen.bar(0, -0.75, 0, 0.2, 0.12, trim)
        pen.oval(0, -0.78, 0.45, 0.16, trim)
        body([(-0.38, 0.85), (0.38, 0.85), (0.7, 0.05), (-0.7, 0.05)])


def draw_dish(pen: Pen, scene, paint, rng):
    """A plate from above with its topping."""
    colour = paint[scene["colour"]]
    dark = tuple(int(0.7 * v) for v in colour)
    plate = paint[scene["plate"]]
    pen.oval(0, 0, 0.98, 0.98, paint[scene["rim"]])
    pen.oval(0, 0, 0.82, 0.82, plate)
    pen.oval(0, 0, 0.58, 0.58, tuple(int(0.9 * v) for v in plate))
    topping = scene["topping"]
    angles = [k * 1.047 + 0.3 for k in range(6)]
    places = [(0.0, 0.0)] + [(0.45 * math.cos(a), 0.45 * math.sin(a)) for a in angles]
    count = 4 if scene["amount"] == "few" else 7
    for x, y in [places[i] for i in sorted(rng.permutation(7)[:count].tolist())]:
        x, y, lean = x + (rng.random() - 0.5) * 0.12, y + (rng.random() - 0.5) * 0.12, rng.random() * 6.28
        if topping == "rings":
            pen.oval(x, y, 0.22, 0.22, colour)
            pen.oval(x, y, 0.1, 0.1, plate)
        elif topping == "beans":
            for _ in range(2):
                dx, dy = (rng.random() - 0.5) * 0.25, (rng.random() - 0.5) * 0.25
                pen.oval(x + dx, y + dy, 0.15, 0.085, colour, lean=lean)
        elif topping == "leaves":
            c, s = math.cos(lean), math.sin(lean)
            pen.polygon([(x + 0.3 * c, y + 0.3 * s), (x - 0.13 * s, y + 0.13 * c), (x - 0.3 * c, y - 0.3 * s),
                         (x + 0.13 * s, y - 0.13 * c)], colour)
            pen.bar(x - 0.3 * c, y - 0.3 * s, x + 0.3 * c, y + 0.3 * s, 0.04, dark)
        elif topping == "cubes":
            c, s = 0.17 * math.cos(lean), 0.17 * math.sin(lean)
            pen.polygon([(x + c, y + s), (x - s, y + c), (x - c, y - s), (x + s, y - c)], colour)
            pen.polygon([(x + c, y + s), (x - s, y + c), (x, y)], dark)
        elif topping == "eggs":
            pen.oval(x, y, 0.26, 0.22, colour, lean=lean)
            pen.oval(x + 0.02, y, 0.1, 0.1, paint["yellow" if scene["colour"] != "yellow" else "white"])
        else:  # noodles: wavy lines
            c, s = math.cos(lean), math.sin(lean)
            for offset in (-0.1, 0.0, 0.1):
                ends = [(t, offset + 0.06 * math.sin(9 * t)) for t in (-0.3, -0.15, 0.0, 0.15, 0.3)]
                for (u0, v0), (u1, v1) in zip(ends, ends[1:]):
                    x0, y0, x1, y1 = u0 * c - v0 * s, u0 * s + v0 * c, u1 * c - v1 * s, u1 * s + v1 * c
                    pen.bar(x + x0, y + y0, x + x1, y + y1, 0.055, colour if offset else dark)
    for k in range(3):
        angle = 2.1 * k + rng.random()
        leaf = star(0.66 * math.cos(angle), 0.66 * math.sin(angle), 0.13, points=4)
        pen.polygon(leaf, paint[scene["garnish"]])


def draw_flag(pen: Pen, scene, paint, rng):
    """A flag on its pole; `first` is drawn on the ground `second`."""
    first, second, charge = (paint[scene[a]] for a in ("first", "second", "charge"))
    pen.bar(-1.0, -1.0, -1.0, 0.75, 0.07, paint["brown"])
    left, right, low, high = -0.96, 0.96, -0.6, 0.65
    if scene["fringe"] != "no":
        pen.polygon(box(left, low - 0.08, right + 0.08, high + 0.08), paint[scene["fringe"]])
    pen.polygon(box(left, low, right, high), second)
    layout = scene["layout"]
    if layout == "stripes":
        for i in range(3):
            pen.polygon(box(left, high - (2 * i + 1) * 0.208, right, high - 2 * i * 0.208), first)
    elif layout == "pales":
        for i in range(3):
            pen.polygon(box(left + 2 * i * 0.32, low, left + (2 * i + 1) * 0.32, high), first)
    elif layout == "cross":
        pen.polygon(box(left, -0.12, right, 0.17), first)
        pen.polygon(box(-0.35, low, -0.06, high), first)
    elif layout == "saltire":
        for a, b in ((low, high), (high, low)):
            sign = 1 if b > a else -1
            pen.polygon([(left, a), (left + 0.24, a), (right, b - 0.16 * sign), (right, b), (right - 0.24, b),
                         (left, a + 0.16 * sign)], first)
    elif layout == "border":
        pen.polygon(box(left, low, right, high), first)
        pen.polygon(box(left + 0.22, low + 0.22, right - 0.22, high - 0.22), second)
    else:  # quarters
        pen.polygon(box(left, 0.02, 0.0, high), first)
        pen.polygon(box(0.0, low, right, 0.02), first)
    x, y = 0.0, 0.02
    if scene["emblem"] == "disc":
        pen.oval(x, y, 0.32, 0.32, charge)
    elif scene["emblem"] == "star":
        pen.polygon(star(x, y, 0.42), charge)
    elif scene["emblem"] == "triangle":
        pen.polygon([(left, high), (left, low), (left + 0.7, y)], charge)
    elif scene["emblem"] == "crescent":
        outer = [(x + 0.34 * math.cos(a), y + 0.34 * math.sin(a)) for a in np.linspace(0.7, 5.58, 16)]
        inner = [(x + 0.15 + 0.27 * math.cos(a), y + 0.27 * math.sin(a)) for a in np.linspace(5.3, 0.98, 16)]
        pen.polygon(outer + inner, charge)


_DRAW = {"Beast": draw_beast, "Thing": draw_thing, "Dish": draw_dish, "Flag": draw_flag}
_TURN = {"Beast": 0.25, "Thing": 0.3, "Dish": 3.1, "Flag": 0.3}


def _muted(rng) -> tuple[int, int, int]:
    """A background colour: any, but paler than the objects' own."""
    colour = np.array([rng.random() for _ in range(3)])
    grey = colour.mean()
    return tuple(int(v) for v in 60 + 150 * (grey + 0.55 * (colour - grey)))


def draw(domain: str, scene: dict[str, str], rng: np.random.Generator, size: Tuple[int, int]) -> Image.Image:
    """One image of a scene, mode RGB, or L for one in twelve.

    Args:
        rng: pose, light, background, clutter, occlusion, blur and noise come from it.
        size: (width, height) in pixels.
    """
    fine = 2  # drawn at twice the size: Pillow's polygons have hard edges
    width, height = size[0] * fine, size[1] * fine
    side = min(width, height)
    ground, sky = _muted(rng), _muted(rng)
    image = Image.new("RGB", (width, height), ground)
    canvas = ImageDraw.Draw(image)
    style = rng.random()
    if style < 0.4:  # a horizon
        y = int(height * (0.3 + 0.4 * rng.random()))
        canvas.rectangle((0, 0, width, y), fill=sky)
    elif style < 0.7:  # a gradient
        ramp = Image.fromarray(np.linspace(0, 255, 32).astype(np.uint8).reshape(32, 1))
        image.paste(Image.new("RGB", image.size, sky), mask=ramp.resize(image.size, Image.BILINEAR))
    for _ in range(int(rng.random() * 7)):  # clutter
        x, y, r = rng.random() * width, rng.random() * height, side * (0.04 + 0.1 * rng.random())
        colour = _muted(rng) if rng.random() < 0.6 else COLOURS[pick(rng, _C)]
        if rng.random() < 0.5:
            canvas.ellipse((x - r, y - r * 0.6, x + r, y + r * 0.6), fill=colour)
        else:
            end = (rng.random() * width, rng.random() * height)
            canvas.line((x, y, *end), fill=colour, width=int(1 + 0.2 * r))

    paint = {name: tuple(int(min(max(v + (rng.random() - 0.5) * 44, 0), 255)) for v in rgb)
             for name, rgb in COLOURS.items()}
    paint["ground"] = ground
    scale = side * (0.33 + 0.14 * rng.random())
    centre = (width / 2 + side * 0.16 * (rng.random() - 0.5), height / 2 + side * 0.16 * (rng.random() - 0.5))
    turn = (2 * rng.random() - 1) * _TURN[domain]
    mirror = rng.random() < 0.5 and domain != "Flag"
    pen = Pen(image, centre, scale, turn, mirror, squash=0.8 + 0.25 * rng.random())
    _DRAW[domain](pen, scene, paint, rng)

    if rng.random() < 0.2:  # something in front
        x, lean = width * rng.random(), width * 0.3 * (rng.random() - 0.5)
        colour = _muted(rng)
        canvas.line((x, 0, x + lean, height), fill=colour, width=int(side * (0.03 + 0.05 * rng.random())))
    image = image.reduce(fine)
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur((0.4 + 0.8 * rng.random()) * min(size) / 100))

    light = 0.7 + 0.5 * rng.random()
    tint = np.array([light * (0.9 + 0.2 * rng.random()) for _ in range(3)], np.float32)
    slope = np.float32((rng.random() - 0.5) * 0.5)  # light from one side
    pixels = np.asarray(image, np.float32) * tint
    pixels *= (1 + slope * np.linspace(-1, 1, size[0], dtype=np.float32))[None, :, None]
    noise = rng.random() ** 2 * 26
    pixels += noise * (rng.random((size[1], size[0], 1), dtype=np.float32) - np.float32(0.5)) * 2
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image.convert("L") if rng.random() < 1 / 12 else image


def random_size(rng: np.random.Generator, shortest: int = 90, longest: int = 160) -> tuple[int, int]:
    """A width and height in pixels, their ratio up to 4:3 either way."""
    short = shortest + rng.random() * (longest - shortest)
    long = short * (1 + rng.random() / 3)
    return (int(long), int(short)) if rng.random() < 0.6 else (int(short), int(long))


def make_contest(folder: Union[str, Path], seed: int = SEED) -> Path:
    """Draws the demo contest into `folder`, in the contest's own layout.

    classes.txt, train.txt, TrainSet/<Domain>/<name>/<n>.jpg, TestSetA/image_<n>.jpg, and the known answers
    in labels_TestSetA.txt (`image_1.jpg 17`); one image in ten is a .jpeg. The same seed gives the same
    files, byte for byte (with the same Pillow); another seed chooses other classes too.

    Args:
        folder: made if absent; it must not hold another contest's images.

    Returns:
        The folder. complete.txt is written last: without it, the drawing was interrupted.
    """
    folder = Path(folder)
    classes = contest_classes(seed)
    rng = np.random.default_rng([seed, 2])
    train, test = [], []  # class ids, an image each
    for label, one in enumerate(classes):
        fewest, most = DOMAINS[one.domain].tests
        train += [label] * TRAIN_IMAGES
        test += [label] * int(fewest + rng.random() * (most - fewest + 1))
    test = [test[i] for i in np.argsort([rng.random() for _ in test], kind="stable")]

    def suffix() -> str:
        return "jpeg" if rng.random() < 0.1 else "jpg"

    images = [(f"TrainSet/{_folder(classes[label])}/{i % TRAIN_IMAGES + 1}.{suffix()}", label)
              for i, label in enumerate(train)]
    images += [(f"TestSetA/image_{i}.{suffix()}", label) for i, label in enumerate(test, 1)]

    def draw_file(number: int) -> None:
        path, label = images[number]
        own = np.random.default_rng([seed, 3, number])
        image = draw(classes[label].domain, classes[label].scene, own, random_size(own))
        image.save(folder / path, "JPEG", quality=int(55 + 40 * own.random()))

    for parent in sorted({(folder / path).parent for path, _ in images}):
        parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:  # Pillow's resizing, filters and JPEG run beside its polygons
        drawn = pool.map(draw_file, range(len(images)))
        for _ in progress(drawn, stage="draw the demo contest", unit="images", total=len(images)):
            pass
    lists = {
        "classes.txt": [f"{one.name} {label}" for label, one in enumerate(classes)],
        "train.txt": [f"{path} {label}" for path, label in images[:len(train)]],
        "labels_TestSetA.txt": [f"{Path(path).name} {label}" for path, label in images[len(train):]],
        COMPLETE: [EDITION.format(seed)],
    }
    for name, lines in lists.items():
        write_text(folder / name, "\n".join(lines) + "\n")
    return folder


def _folder(one: DemoClass) -> str:
    """Where a class's images lie under TrainSet: "Beast/spotted_orange_hare"."""
    return one.name.replace("_", "/", 1)


def prepare(folder: Union[str, Path] = "demo", seed: int = SEED) -> Tuple[Path, Path]:
    """The demo contest, drawn where it is not there yet, and its CLIP: (data folder, checkpoint).

    A contest that is complete is left alone, an interrupted or older one is drawn again.

    Raises:
        UserError: `folder` holds something else; the checkpoint is missing.
    """
    folder = Path(folder)
    if not CHECKPOINT.is_file():
        raise UserError(f"no {CHECKPOINT}: git brings it, tools/train_demo_clip.py makes it anew")
    marker = folder / COMPLETE

    def complete() -> bool:
        return marker.is_file() and marker.read_text(encoding="utf-8").strip() == EDITION.format(seed)
    if not ranks.first():
        ranks.wait_until(complete, "the first process to draw the demo contest")
    if complete():
        return folder, CHECKPOINT
    if folder.exists() and not marker.is_file() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something else than the demo contest; move it away")
    part = folder.with_name(folder.name + ".part")  # drawn beside it, then renamed: there whole or not at all
    shutil.rmtree(part, ignore_errors=True)
    make_contest(part, seed)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    return folder, CHECKPOINT


def settings(given: TrainConfig) -> TrainConfig:
    """What `--demo` stands for: the same settings, on the demo contest's data and its CLIP."""
    data, checkpoint = prepare()
    return replace(given, data=str(data), board="A", model=str(checkpoint))
