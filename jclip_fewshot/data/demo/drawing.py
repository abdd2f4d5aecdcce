"""Drawing the demo's inhabitants with Pillow's polygons."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from jclip_fewshot.data.demo.world import _C, COLOURS, pick


class Pen:
    """Draws polygons in the object's own coordinates, -1..1 with y upwards, on a canvas in pixels."""

    def __init__(self, image: Image.Image, centre, scale: float, turn: float, mirror: bool, squash: float):
        self.image = image
        self.draw = ImageDraw.Draw(image)
        c, s = math.cos(turn) * scale, math.sin(turn) * scale
        m = -1.0 if mirror else 1.0
        self.matrix = (c * m, s * squash, s * m, -c * squash)
        self.centre = centre

    def on(self, image: Image.Image) -> Pen:
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


def star(x, y, radius, points=5):
    corners = []
    for i in range(2 * points):
        r = radius if i % 2 == 0 else radius * 0.42
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


def draw_beast(pen: Pen, scene, paint, rng):
    """A beast in profile, looking right: legs, tail, body, neck, head, ears."""
    species, one = scene["species"], _BUILDS[scene["species"]]
    coat, accent = paint[scene["colour"]], paint[scene["accent"]]
    dark = tuple(int(0.72 * v) for v in coat)
    swing = (rng.random() - 0.5) * 0.2
    for x, side in ((-0.7, dark), (0.6, dark), (-0.85, coat), (0.78, coat)):
        foot = x * one.length + (swing if side is dark else -swing)
        top, bottom = one.middle - 0.3 * one.height, one.middle - one.height * 0.6 - one.leg
        pen.bar(x * one.length, top, foot, bottom, one.thick, side)
        if scene["socks"] == "yes":
            knee = 0.35 * x * one.length + 0.65 * foot
            pen.bar(knee, bottom + 0.35 * (top - bottom), foot, bottom, one.thick * 1.15, accent)
    _draw_tail(pen, species, -one.length, one.middle, (coat, dark, accent))
    body = [oval(0, one.middle, one.length, one.height)]
    if species == "camel":
        body += [oval(x, one.middle + 0.24, 0.17, 0.22) for x in (-0.2, 0.22)]
    x, y = one.length * 0.65, one.middle + one.height * 0.2  # where the neck begins
    pen.bar(x, y, one.hx - 0.02, one.hy, one.neck, coat)
    patterned(pen, body, scene["pattern"], coat, accent, rng, size=0.8)
    if scene["collar"] != "no":
        dx, dy = one.hx - one.length * 0.65, one.hy - one.middle - one.height * 0.2  # along the neck
        x, y = x + 0.45 * dx, y + 0.45 * dy
        dx, dy = 0.08 * dx / math.hypot(dx, dy), 0.08 * dy / math.hypot(dx, dy)
        pen.bar(x - dx, y - dy, x + dx, y + dy, one.neck * 1.3, paint[scene["collar"]])
    _draw_head(pen, species, one, (coat, dark, accent), paint)


def _draw_tail(pen: Pen, species: str, back: float, middle: float, colours) -> None:
    coat, dark, accent = colours
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


def _draw_head(pen: Pen, species: str, one: Build, colours, paint) -> None:
    (coat, dark, accent), hx, hy, head = colours, one.hx, one.hy, one.head
    if species == "hare":  # ears and antlers behind the head
        pen.oval(hx - 0.12, hy + 0.42, 0.08, 0.32, dark, lean=0.25)
    elif species == "bear":
        pen.oval(hx - 0.2, hy + 0.24, 0.12, 0.12, dark)
    elif species == "deer":
        for lean in (-0.25, 0.18):
            pen.bar(hx - 0.05, hy + 0.1, hx + lean, hy + 0.55, 0.06, paint["brown"])
            pen.bar(hx + lean * 0.6, hy + 0.34, hx + lean * 0.6 + 0.2, hy + 0.5, 0.05, paint["brown"])
            pen.bar(hx + lean * 0.6, hy + 0.34, hx + lean * 0.6 - 0.16, hy + 0.52, 0.05, paint["brown"])
    pen.oval(hx, hy, head, head * 0.9, coat)
    if one.snout:
        tip = 0.05 if species == "fox" else 0.1
        pen.polygon([(hx, hy + head * 0.6), (hx + head + one.snout * 0.7, hy + tip - 0.08),
                     (hx + head + one.snout * 0.7, hy - tip - 0.06), (hx, hy - head * 0.75)], coat)
        pen.oval(hx + head + one.snout * 0.65, hy - 0.05, 0.06, 0.06, paint["black"])
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


def draw_flag(pen: Pen, scene, paint, _rng):
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


def _muted(rng) -> tuple[int, ...]:
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
        image.paste(Image.new("RGB", image.size, sky), mask=ramp.resize(image.size, Image.Resampling.BILINEAR))
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
