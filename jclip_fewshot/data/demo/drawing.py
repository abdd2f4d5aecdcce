"""Drawing the demo's inhabitants with Pillow's polygons."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from jclip_fewshot.data.demo.world import _C, COLOURS, pick

Colour = tuple[int, ...]
Shape = Sequence[tuple[float, float]]  # corners in the object's own coordinates, -1..1 with y upwards


def turned(x: float, y: float, angle: float, shape: Shape) -> Shape:
    """A shape turned around the origin, which is then laid on (x, y)."""
    c, s = math.cos(angle), math.sin(angle)
    return [(x + u * c - v * s, y + u * s + v * c) for u, v in shape]


_CIRCLE = [(math.cos(math.pi * i / 12), math.sin(math.pi * i / 12)) for i in range(24)]


def oval(x: float, y: float, rx: float, ry: float, lean: float = 0.0) -> Shape:
    return turned(x, y, lean, [(rx * u, ry * v) for u, v in _CIRCLE])


def bar(x0: float, y0: float, x1: float, y1: float, width: float) -> Shape:
    dx, dy = x1 - x0, y1 - y0
    length = math.hypot(dx, dy) or 1.0
    nx, ny = -dy / length * width / 2, dx / length * width / 2
    return [(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)]


def box(x0: float, y0: float, x1: float, y1: float) -> Shape:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def star(x: float, y: float, radius: float, points: int = 5) -> Shape:
    angles = [math.pi / 2 + math.pi * i / points for i in range(2 * points)]
    radii = [radius, radius * 0.42] * points
    return [(x + r * math.cos(angle), y + r * math.sin(angle)) for r, angle in zip(radii, angles)]


class Pen(NamedTuple):
    """Draws shapes on a canvas: (x, y) lies at the pixel `centre` + `matrix` (x, y)."""

    image: Image.Image
    centre: tuple[float, float]
    matrix: tuple[float, float, float, float]

    def polygon(self, shape: Shape, colour: Colour | int) -> None:
        (cx, cy), (a, b, c, d) = self.centre, self.matrix
        corners = [(cx + a * x + b * y, cy + c * x + d * y) for x, y in shape]
        ImageDraw.Draw(self.image).polygon(corners, fill=colour)

    def oval(self, x, y, rx, ry, colour, lean: float = 0.0) -> None:
        self.polygon(oval(x, y, rx, ry, lean), colour)

    def bar(self, x0, y0, x1, y1, width, colour) -> None:
        self.polygon(bar(x0, y0, x1, y1, width), colour)


def _marks(pattern: str, middle: float, rng) -> list[Shape]:
    """The shapes of a pattern. middle: the height of its one band."""
    size = 0.8
    shift = rng.random() * 0.25 * size
    if pattern == "spotted":
        step = 0.36 * size
        return [oval((column + 0.5 * (row % 2)) * step + shift, row * step * 0.85 + shift, 0.11 * size, 0.11 * size)
                for row in range(-4, 5) for column in range(-4, 5)]
    if pattern == "striped":
        edges = [i * 0.25 * size + shift for i in range(-7, 8)]
        return [bar(x, -1.5, x + 0.1, 1.5, 0.11 * size) for x in edges]
    if pattern == "banded":
        return [bar(-1.5, middle, 1.5, middle, 0.26 * size)]
    if pattern == "patched":
        return [oval((x + shift) * size, y * size, 0.27 * size, 0.2 * size, lean=rng.random() * 3)
                for x, y in ((-0.42, 0.22), (0.28, -0.2), (0.55, 0.45), (-0.2, -0.55))]
    # speckled
    return [oval(rng.random() * 2 - 1, rng.random() * 2 - 1, 0.035 * size, 0.035 * size) for _ in range(110)]


def patterned(pen: Pen, shapes: Sequence[Shape], pattern: str, colour: Colour, accent: Colour, rng) -> None:
    """Fill shapes with a colour and lay a pattern of the accent colour over them."""
    for shape in shapes:
        pen.polygon(shape, colour)
    if pattern == "plain":
        return
    layer, inside = (pen._replace(image=Image.new("L", pen.image.size)) for _ in range(2))
    for mark in _marks(pattern, sum(y for _, y in shapes[0]) / len(shapes[0]), rng):
        layer.polygon(mark, 255)
    for shape in shapes:
        inside.polygon(shape, 255)
    pen.image.paste(accent, mask=ImageChops.darker(layer.image, inside.image))


class Build(NamedTuple):
    """A species: half length, half height and centre height of its body, the head's place and radius, and the rest."""

    length: float
    height: float
    middle: float
    hx: float  # the end of the neck, where the head is
    hy: float
    leg: float
    head: float
    thick: float = 0.11  # legs
    neck: float = 0.2
    snout: float = 0.26


_BUILDS = {
    "hare": Build(0.48, 0.34, -0.3, 0.5, 0.15, 0.22, 0.24, 0.15, 0.26, 0.0),
    "fox": Build(0.52, 0.22, -0.2, 0.62, 0.12, 0.36, 0.2),
    "bear": Build(0.62, 0.42, -0.12, 0.66, 0.22, 0.38, 0.29, 0.2, 0.4, 0.16),
    "hound": Build(0.55, 0.2, -0.02, 0.66, 0.36, 0.62, 0.2),
    "camel": Build(0.55, 0.24, -0.1, 0.84, 0.42, 0.58, 0.15, snout=0.22),
    "deer": Build(0.5, 0.2, -0.1, 0.64, 0.38, 0.62, 0.16),
    "elephant": Build(0.6, 0.42, 0.0, 0.66, 0.2, 0.5, 0.32, 0.22, 0.4, 0.0),
    "giraffe": Build(0.42, 0.2, -0.3, 0.6, 0.78, 0.5, 0.14, snout=0.2),
}


# Ovals by species: a colour, the place beside the tail's root or the head's centre, two radii, and the lean.
_TAILS = {"fox": [("coat", -0.22, 0.06, 0.3, 0.12, -0.5), ("accent", -0.4, 0.17, 0.11, 0.08, -0.5)],
          "hare": [("accent", 0.0, 0.05, 0.13, 0.13, 0.0)],
          "bear": [("dark", 0.0, 0.08, 0.1, 0.07, 0.0)], "deer": [("dark", 0.0, 0.08, 0.1, 0.07, 0.0)]}
_FAR_EARS = {"hare": [("dark", -0.12, 0.42, 0.08, 0.32, 0.25)], "bear": [("dark", -0.2, 0.24, 0.12, 0.12, 0.0)]}
_EARS = {"hare": [("coat", 0.02, 0.46, 0.09, 0.34, -0.12), ("accent", 0.02, 0.46, 0.04, 0.24, -0.12)],
         "bear": [("dark", 0.02, 0.27, 0.12, 0.12, 0.0)], "hound": [("dark", -0.1, -0.12, 0.1, 0.28, 0.15)],
         "elephant": [("dark", -0.16, 0.0, 0.22, 0.32, 0.0)]}


def _ovals(pen: Pen, x: float, y: float, ovals, paint) -> None:
    for colour, dx, dy, rx, ry, lean in ovals:
        pen.oval(x + dx, y + dy, rx, ry, paint[colour], lean)


def draw_beast(pen: Pen, scene, paint, rng) -> None:
    """A beast in profile, looking right: legs, tail, body, neck, head, ears."""
    species, one = scene["species"], _BUILDS[scene["species"]]
    coat, accent = paint[scene["colour"]], paint[scene["accent"]]
    dark = tuple(int(0.72 * v) for v in coat)
    paint = {**paint, "coat": coat, "accent": accent, "dark": dark}
    swing = (rng.random() - 0.5) * 0.2
    for x, side in ((-0.7, dark), (0.6, dark), (-0.85, coat), (0.78, coat)):
        foot = x * one.length + (swing if side is dark else -swing)
        top, bottom = one.middle - 0.3 * one.height, one.middle - one.height * 0.6 - one.leg
        pen.bar(x * one.length, top, foot, bottom, one.thick, side)
        if scene["socks"] == "yes":
            knee = 0.35 * x * one.length + 0.65 * foot
            pen.bar(knee, bottom + 0.35 * (top - bottom), foot, bottom, one.thick * 1.15, accent)
    back = -one.length
    _ovals(pen, back, one.middle, _TAILS.get(species, ()), paint)
    if species not in _TAILS:
        end = 0.35 if species == "hound" else -0.35
        pen.bar(back + 0.05, one.middle + 0.05, back - 0.22, one.middle + end, 0.07, dark)
    body = [oval(0, one.middle, one.length, one.height)]
    if species == "camel":
        body += [oval(x, one.middle + 0.24, 0.17, 0.22) for x in (-0.2, 0.22)]
    x, y = one.length * 0.65, one.middle + one.height * 0.2  # where the neck begins
    pen.bar(x, y, one.hx - 0.02, one.hy, one.neck, coat)
    patterned(pen, body, scene["pattern"], coat, accent, rng)
    if scene["collar"] != "no":
        dx, dy = one.hx - one.length * 0.65, one.hy - one.middle - one.height * 0.2  # along the neck
        x, y = x + 0.45 * dx, y + 0.45 * dy
        dx, dy = 0.08 * dx / math.hypot(dx, dy), 0.08 * dy / math.hypot(dx, dy)
        pen.bar(x - dx, y - dy, x + dx, y + dy, one.neck * 1.3, paint[scene["collar"]])
    _draw_head(pen, species, one, paint)


def _draw_head(pen: Pen, species: str, one: Build, paint) -> None:
    hx, hy, head, coat, dark = one.hx, one.hy, one.head, paint["coat"], paint["dark"]
    _ovals(pen, hx, hy, _FAR_EARS.get(species, ()), paint)
    if species == "deer":
        for lean in (-0.25, 0.18):  # antlers
            fork = hx + lean * 0.6
            pen.bar(hx - 0.05, hy + 0.1, hx + lean, hy + 0.55, 0.06, paint["brown"])
            pen.bar(fork, hy + 0.34, fork + 0.2, hy + 0.5, 0.05, paint["brown"])
            pen.bar(fork, hy + 0.34, fork - 0.16, hy + 0.52, 0.05, paint["brown"])
    pen.oval(hx, hy, head, head * 0.9, coat)
    if one.snout:
        tip, end = 0.05 if species == "fox" else 0.1, hx + head + one.snout * 0.7
        pen.polygon([(hx, hy + head * 0.6), (end, hy + tip - 0.08), (end, hy - tip - 0.06),
                     (hx, hy - head * 0.75)], coat)
        pen.oval(hx + head + one.snout * 0.65, hy - 0.05, 0.06, 0.06, paint["black"])
    if species == "fox":
        pen.polygon([(hx - 0.2, hy + 0.08), (hx - 0.12, hy + 0.44), (hx + 0.04, hy + 0.14)], coat)
        pen.polygon([(hx - 0.04, hy + 0.12), (hx + 0.08, hy + 0.44), (hx + 0.18, hy + 0.08)], dark)
    elif species not in _EARS:
        pen.oval(hx - head * 0.8, hy + head * 0.9, 0.1, 0.05, dark, lean=-0.6)
    if species == "elephant":
        for i in range(5):  # the trunk
            pen.bar(hx + 0.26 + 0.05 * i, hy - 0.14 * i, hx + 0.35 + 0.05 * i, hy - 0.14 * (i + 1),
                    0.15 - 0.012 * i, coat)
    elif species == "giraffe":
        pen.bar(hx, hy, hx - 0.02, hy + 0.26, 0.05, dark)
        pen.oval(hx - 0.02, hy + 0.27, 0.05, 0.05, dark)
    _ovals(pen, hx, hy, _EARS.get(species, ()), paint)
    pen.oval(hx + head * 0.35, hy + head * 0.3, 0.055, 0.055, paint["white"])
    pen.oval(hx + head * 0.42, hy + head * 0.3, 0.032, 0.032, paint["black"])


# What things are made of, back to front: a colour, and its shape. `body` carries the pattern.
_THINGS: dict[str, list[tuple[str, Shape]]] = {
    "boat": [("brown", bar(0.0, -0.3, 0.0, 0.9, 0.06)),
             ("trim", [(0.06, -0.15), (0.06, 0.85), (0.75, -0.15)]),
             ("trim", [(-0.06, -0.15), (-0.06, 0.65), (-0.5, -0.15)]),
             ("body", [(-0.9, -0.22), (0.95, -0.22), (0.6, -0.75), (-0.65, -0.75)])],
    "car": [("trim", [(-0.55, 0.05), (-0.35, 0.5), (0.3, 0.5), (0.58, 0.05)]),
            ("body", [(-0.95, -0.4), (-0.95, 0.02), (-0.8, 0.1), (0.75, 0.1), (0.95, -0.05), (0.95, -0.4)]),
            *((colour, oval(x, -0.4, r, r)) for x in (-0.55, 0.55) for colour, r in (("black", 0.23), ("trim", 0.11)))],
    "house": [("body", box(-0.65, -0.8, 0.65, 0.1)), ("trim", [(-0.85, 0.08), (0, 0.85), (0.85, 0.08)]),
              ("brown", box(-0.12, -0.8, 0.18, -0.3)), ("cyan", box(0.3, -0.4, 0.52, -0.15))],
    "balloon": [*(("black", bar(x, -0.65, 1.8 * x, 0.0, 0.03)) for x in (-0.2, 0.2)),
                ("body", oval(0, 0.3, 0.6, 0.62)), ("trim", box(-0.24, -0.95, 0.24, -0.62))],
    "rocket": [*(("trim", [(0.28 * side, -0.25), (0.65 * side, -0.75), (0.28 * side, -0.6)]) for side in (-1, 1)),
               ("orange", [(-0.15, -0.6), (0.0, -1.0), (0.15, -0.6)]), ("body", box(-0.29, -0.62, 0.29, 0.42)),
               ("trim", [(-0.29, 0.42), (0, 0.98), (0.29, 0.42)])],
    "mug": [("trim", oval(0.55, -0.05, 0.36, 0.4)), ("ground", oval(0.55, -0.05, 0.2, 0.24)),
            ("body", [(-0.6, 0.55), (0.5, 0.55), (0.44, -0.75), (-0.54, -0.75)]),
            ("trim", oval(-0.05, 0.55, 0.55, 0.14))],
    "umbrella": [("trim", bar(0, -0.8, 0, 0.3, 0.07)), ("trim", bar(0, -0.8, 0.22, -0.84, 0.08)),
                 ("body", [*((0.95 * x, 0.05 + 0.8 * y) for x, y in _CIRCLE[:13]),
                           (-0.63, 0.16), (-0.32, 0.03), (0, 0.16), (0.32, 0.03), (0.63, 0.16)]),
                 ("trim", bar(0, 0.8, 0, 0.98, 0.07))],
    "lamp": [("trim", bar(0, -0.75, 0, 0.2, 0.12)), ("trim", oval(0, -0.78, 0.45, 0.16)),
             ("body", [(-0.38, 0.85), (0.38, 0.85), (0.7, 0.05), (-0.7, 0.05)])],
}


def draw_thing(pen: Pen, scene, paint, rng) -> None:
    """An object whose main part carries the colour and the pattern, and another part the trim."""
    for colour, shape in _THINGS[scene["kind"]]:
        if colour == "body":
            patterned(pen, [shape], scene["pattern"], paint[scene["colour"]], paint[scene["accent"]], rng)
        else:
            pen.polygon(shape, paint[scene.get(colour, colour)])


def draw_dish(pen: Pen, scene, paint, rng) -> None:
    colour, plate = paint[scene["colour"]], paint[scene["plate"]]
    dark = tuple(int(0.7 * v) for v in colour)
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
            leaf = turned(x, y, lean, [(0.3, 0.0), (0.0, 0.13), (-0.3, 0.0), (0.0, -0.13)])
            pen.polygon(leaf, colour)
            pen.bar(*leaf[2], *leaf[0], 0.04, dark)
        elif topping == "cubes":
            corners = turned(x, y, lean, [(0.17, 0.0), (0.0, 0.17), (-0.17, 0.0), (0.0, -0.17)])
            pen.polygon(corners, colour)
            pen.polygon([*corners[:2], (x, y)], dark)
        elif topping == "eggs":
            pen.oval(x, y, 0.26, 0.22, colour, lean=lean)
            pen.oval(x + 0.02, y, 0.1, 0.1, paint["yellow" if scene["colour"] != "yellow" else "white"])
        else:  # noodles: wavy lines
            for offset in (-0.1, 0.0, 0.1):
                wave = turned(0, 0, lean, [(t, offset + 0.06 * math.sin(9 * t)) for t in (-0.3, -0.15, 0.0, 0.15, 0.3)])
                for (x0, y0), (x1, y1) in zip(wave, wave[1:]):
                    pen.bar(x + x0, y + y0, x + x1, y + y1, 0.055, colour if offset else dark)
    for k in range(3):
        angle = 2.1 * k + rng.random()
        pen.polygon(star(0.66 * math.cos(angle), 0.66 * math.sin(angle), 0.13, points=4), paint[scene["garnish"]])


_LEFT, _RIGHT, _LOW, _HIGH = -0.96, 0.96, -0.6, 0.65
# The shapes of the colour `first` on the flag's ground; those of a border lie under its middle.
_LAYOUTS: dict[str, list[Shape]] = {
    "stripes": [box(_LEFT, _HIGH - (2 * i + 1) * 0.208, _RIGHT, _HIGH - 2 * i * 0.208) for i in range(3)],
    "pales": [box(_LEFT + 2 * i * 0.32, _LOW, _LEFT + (2 * i + 1) * 0.32, _HIGH) for i in range(3)],
    "cross": [box(_LEFT, -0.12, _RIGHT, 0.17), box(-0.35, _LOW, -0.06, _HIGH)],
    "saltire": [[(_LEFT, a), (_LEFT + 0.24, a), (_RIGHT, b - 0.16 * sign), (_RIGHT, b), (_RIGHT - 0.24, b),
                 (_LEFT, a + 0.16 * sign)] for a, b, sign in ((_LOW, _HIGH, 1), (_HIGH, _LOW, -1))],
    "border": [box(_LEFT, _LOW, _RIGHT, _HIGH)],
    "quarters": [box(_LEFT, 0.02, 0.0, _HIGH), box(0.0, _LOW, _RIGHT, 0.02)],
}
_EMBLEMS: dict[str, Shape] = {
    "disc": oval(0.0, 0.02, 0.32, 0.32), "star": star(0.0, 0.02, 0.42),
    "triangle": [(_LEFT, _HIGH), (_LEFT, _LOW), (_LEFT + 0.7, 0.02)],
    "crescent": [*((0.34 * math.cos(a), 0.02 + 0.34 * math.sin(a)) for a in np.linspace(0.7, 5.58, 16)),
                 *((0.15 + 0.27 * math.cos(a), 0.02 + 0.27 * math.sin(a)) for a in np.linspace(5.3, 0.98, 16))],
}


def draw_flag(pen: Pen, scene, paint, _rng) -> None:
    """A flag on its pole; `first` is drawn on the ground `second`."""
    pen.bar(-1.0, -1.0, -1.0, 0.75, 0.07, paint["brown"])
    if scene["fringe"] != "no":
        pen.polygon(box(_LEFT, _LOW - 0.08, _RIGHT + 0.08, _HIGH + 0.08), paint[scene["fringe"]])
    pen.polygon(box(_LEFT, _LOW, _RIGHT, _HIGH), paint[scene["second"]])
    for shape in _LAYOUTS[scene["layout"]]:
        pen.polygon(shape, paint[scene["first"]])
    if scene["layout"] == "border":
        pen.polygon(box(_LEFT + 0.22, _LOW + 0.22, _RIGHT - 0.22, _HIGH - 0.22), paint[scene["second"]])
    if scene["emblem"] != "no":
        pen.polygon(_EMBLEMS[scene["emblem"]], paint[scene["charge"]])


_DRAW = {"Beast": (draw_beast, 0.25), "Thing": (draw_thing, 0.3), "Dish": (draw_dish, 3.1), "Flag": (draw_flag, 0.3)}


def _muted(rng) -> Colour:
    """A background colour: any, but paler than the objects' own."""
    colour = np.array([rng.random() for _ in range(3)])
    grey = colour.mean()
    return tuple(int(v) for v in 60 + 150 * (grey + 0.55 * (colour - grey)))


def draw(domain: str, scene: dict[str, str], rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return an image of a scene, size (width, height), mode RGB, or L for one in twelve; `rng` decides all else."""
    fine = 2  # drawn at twice the size: Pillow's polygons have hard edges
    width, height = size[0] * fine, size[1] * fine
    side = min(width, height)
    ground, sky = _muted(rng), _muted(rng)
    image = Image.new("RGB", (width, height), ground)
    canvas = ImageDraw.Draw(image)
    style = rng.random()
    if style < 0.4:  # a horizon
        canvas.rectangle((0, 0, width, int(height * (0.3 + 0.4 * rng.random()))), fill=sky)
    elif style < 0.7:  # a gradient
        ramp = Image.fromarray(np.linspace(0, 255, 32).astype(np.uint8).reshape(32, 1))
        image.paste(sky, mask=ramp.resize(image.size, Image.Resampling.BILINEAR))
    for _ in range(int(rng.random() * 7)):  # clutter
        x, y, r = rng.random() * width, rng.random() * height, side * (0.04 + 0.1 * rng.random())
        colour = _muted(rng) if rng.random() < 0.6 else COLOURS[pick(rng, _C)]
        if rng.random() < 0.5:
            canvas.ellipse((x - r, y - r * 0.6, x + r, y + r * 0.6), fill=colour)
        else:
            canvas.line((x, y, rng.random() * width, rng.random() * height), fill=colour, width=int(1 + 0.2 * r))

    paint = {name: tuple(int(min(max(v + (rng.random() - 0.5) * 44, 0), 255)) for v in rgb)
             for name, rgb in COLOURS.items()}
    paint["ground"] = ground
    draw_one, most_turn = _DRAW[domain]
    scale = side * (0.33 + 0.14 * rng.random())
    centre = (width / 2 + side * 0.16 * (rng.random() - 0.5), height / 2 + side * 0.16 * (rng.random() - 0.5))
    turn = (2 * rng.random() - 1) * most_turn
    mirror = -1.0 if rng.random() < 0.5 and domain != "Flag" else 1.0
    squash = 0.8 + 0.25 * rng.random()
    c, s = math.cos(turn) * scale, math.sin(turn) * scale
    draw_one(Pen(image, centre, (c * mirror, s * squash, s * mirror, -c * squash)), scene, paint, rng)

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
