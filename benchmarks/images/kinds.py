"""The kinds of images, and how each is drawn.

There are two families of papers, pens, lights and cameras with different parameters: the preprocessing rule was developed on
`a` and is checked on `b`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.images import scene
from benchmarks.images.ink import Field, Pen, draw
from benchmarks.images.scene import WHITE, Colour, Random, Ruling

Digit = NDArray[np.uint8]
Range = tuple[float, float]


@dataclass(frozen=True)
class Shot:
    """One picture of a digit. Ranges are drawn from uniformly."""

    pen: Pen = field(default_factory=Pen)
    side: Range = (260, 620)
    """The shorter side of the picture in pixels."""
    aspect: Range = (1.0, 1.4)
    share: Range = (0.28, 0.6)
    """Height of the digit over the shorter side."""
    offset: float = 0.5
    """How far from the middle, as a share of the free space."""
    paper: Colour = WHITE
    texture: str = ""
    strength: float = 0.0
    ruling: Ruling | None = None
    light: str = ""
    depth: Range = (0.0, 0.0)
    dark_share: Range = (0.0, 0.0)
    glare: float = 0.0
    table: int = 0
    table_share: Range = (0.05, 0.2)
    table_colour: Colour = (0.12, 0.14, 0.18)
    specks: Range = (0, 0)
    degrees: float = 3.0
    perspective: float = 0.0
    blur: Range = (0.4, 0.9)
    motion: Range = (0, 0)
    noise: Range = (0.004, 0.012)
    jpeg: Range = (82, 95)
    invert: bool = False


BALLPOINT = {
    "a": Pen(width=1.5, opacity=0.9, colour=(0.5, 0.2, 0.12)),
    "b": Pen(width=1.7, opacity=0.85, colour=(0.2, 0.16, 0.16)),
}
_COLOURS: dict[str, dict[str, Colour]] = {
    "a": {"blue": (0.65, 0.25, 0.1), "red": (0.2, 0.15, 0.8), "green": (0.3, 0.5, 0.12), "board": (0.2, 0.22, 0.18)},
    "b": {"blue": (0.8, 0.35, 0.2), "red": (0.3, 0.2, 0.7), "green": (0.2, 0.42, 0.2), "board": (0.14, 0.14, 0.15)},
}


def _choose(family: str, a: float, b: float) -> float:
    return a if family == "a" else b


def shots(family: str) -> dict[str, Shot]:
    """The kinds of photographs and scans, by name."""

    def f(a: float, b: float) -> float:
        return _choose(family, a, b)

    colours, ball = _COLOURS[family], BALLPOINT[family]
    pen = Shot(pen=ball)
    lines = Ruling(rows=f(1.3, 1.05), width=f(0.025, 0.018), opacity=f(0.55, 0.75))
    squares = Ruling(rows=f(0.6, 0.8), columns=f(0.6, 0.8), width=f(0.018, 0.022), opacity=f(0.45, 0.6))
    chalk = Pen(wider=f(0.2, 0.0), grain=f(0.5, 0.65), opacity=0.9, colour=(0.9, 0.92, 0.92))
    return {
        "white paper": pen,
        "cream paper": replace(pen, paper=(0.75, 0.88, 0.94)),
        "grey paper": replace(pen, paper=(f(0.6, 0.5),) * 3),
        "coarse paper": replace(pen, texture=("coarse" if family == "a" else "laid"), strength=f(0.05, 0.04)),
        "crumpled paper": replace(pen, texture="crumpled", strength=f(0.05, 0.035)),
        "recycled paper": replace(pen, paper=(0.66, 0.71, 0.73), texture="flecks" if family == "a" else "fibres", strength=0.1),
        "kraft paper": replace(pen, paper=(0.38, 0.54, 0.68), texture=("fibres" if family == "a" else "coarse"), strength=0.05),
        "ruled lines": replace(pen, ruling=lines),
        "ruled, wide": replace(pen, ruling=replace(lines, rows=f(2.2, 1.8), colour=(0.55, 0.5, 0.5)), share=(0.2, 0.4)),
        "ruled, margin": replace(pen, ruling=replace(lines, margin=True)),
        "squared": replace(pen, ruling=squares),
        "squared, dark": replace(pen, ruling=replace(squares, colour=(0.5, 0.45, 0.45), opacity=0.6)),
        "dotted": replace(pen, ruling=replace(squares, dots=True, width=f(0.05, 0.065), opacity=0.8)),
        "graph paper": replace(pen, ruling=Ruling(f(0.16, 0.22), f(0.16, 0.22), 0.012, f(0.35, 0.45), (0.55, 0.7, 0.5))),
        "form box": replace(pen, ruling=Ruling(width=f(0.025, 0.035), opacity=0.9, colour=(0.2, 0.2, 0.2), frame="box")),
        "form comb": replace(pen, ruling=Ruling(width=f(0.02, 0.03), opacity=0.7, colour=(0.3, 0.25, 0.5), frame="comb")),
        "underline": replace(pen, ruling=Ruling(width=0.03, opacity=0.85, colour=(0.2, 0.2, 0.2), frame="underline")),
        "hairline pen": replace(pen, pen=Pen(width=f(0.4, 0.3), opacity=0.9)),
        "fine pen": replace(pen, pen=Pen(width=f(0.8, 0.65))),
        "hairline, tidy": replace(pen, pen=Pen(width=f(0.35, 0.45)), degrees=0, blur=(0, 0), noise=(0, 0), jpeg=(0, 0)),
        "marker": replace(pen, pen=Pen(wider=f(0.7, 0.9), opacity=0.95)),
        "brush": replace(pen, pen=Pen(width=f(4.5, 5.0))),
        "pencil": replace(pen, pen=Pen(width=f(1.6, 1.3), opacity=f(0.5, 0.42), grain=f(0.4, 0.55), colour=(0.3, 0.3, 0.3))),
        "faint pencil": replace(pen, pen=Pen(width=1.4, opacity=f(0.28, 0.22), grain=0.3, colour=(0.35, 0.35, 0.35))),
        "chalk": replace(pen, pen=chalk, paper=colours["board"], texture="crumpled", strength=f(0.1, 0.14)),
        "white on black": replace(pen, pen=Pen(width=1.8, colour=(0.92, 0.92, 0.92)), paper=(0.07, 0.07, 0.07)),
        **{f"{name} ink": replace(pen, pen=replace(ball, colour=colours[name])) for name in ("blue", "red", "green")},
        "gradient": replace(pen, light="gradient", depth=(f(0.35, 0.45), 0.65)),
        "soft shadow": replace(pen, light="soft", depth=(0.3, f(0.55, 0.65)), dark_share=(0.2, 0.6)),
        "hard shadow 25 %": replace(pen, light="hard", depth=(0.3, f(0.55, 0.6)), dark_share=(0.18, 0.3)),
        "hard shadow 40 %": replace(pen, light="hard", depth=(0.3, f(0.55, 0.65)), dark_share=(0.35, 0.45)),
        "hard shadow 55 %": replace(pen, light="hard", depth=(0.35, f(0.5, 0.6)), dark_share=(0.5, 0.6)),
        "hand's shadow": replace(pen, light="hand", depth=(0.25, f(0.5, 0.55)), dark_share=(0.25, 0.5)),
        "stripe of shadow": replace(pen, light="stripe", depth=(0.25, f(0.4, 0.5)), dark_share=(0.3, 0.5)),
        "spot of light": replace(pen, light="spot", depth=(0.4, f(0.6, 0.7))),
        "vignette": replace(pen, light="vignette", depth=(0.4, f(0.6, 0.75))),
        "low contrast": replace(pen, pen=replace(ball, opacity=f(0.2, 0.16))),
        "dim": replace(pen, light="gradient", depth=(0.75, 0.85), noise=(0.01, f(0.02, 0.025))),
        "glare": replace(pen, glare=f(0.8, 0.95), paper=(0.7, 0.7, 0.7)),
        "out of focus": replace(pen, blur=(1.5, f(3.0, 4.0))),
        "motion": replace(pen, motion=(4, f(9, 12))),
        "noisy": replace(pen, noise=(0.03, f(0.06, 0.07))),
        "low JPEG quality": replace(pen, jpeg=(f(15, 10), 30)),
        "turned": replace(pen, degrees=f(8, 10)),
        "perspective": replace(pen, perspective=f(0.15, 0.2)),
        "table on 1 side": replace(pen, table=1, table_share=(0.04, f(0.2, 0.25)), table_colour=(0.12, 0.14, f(0.18, 0.3))),
        "table on 2 sides": replace(pen, table=2, table_share=(0.04, f(0.2, 0.25)), table_colour=(0.1, f(0.12, 0.2), 0.2)),
        "dark strip": replace(pen, table=1, table_share=(f(0.018, 0.012), f(0.022, 0.03)), table_colour=(0.05,) * 3, degrees=1),
        "table all around": replace(pen, table=4, table_share=(0.04, f(0.15, 0.18)), table_colour=(0.12, 0.14, f(0.18, 0.3))),
        "fold": replace(pen, light="fold", depth=(0.1, f(0.3, 0.35))),
        "stain": replace(pen, light="ring", depth=(0.1, f(0.3, 0.25))),
        "highlighter": replace(pen, light="band", depth=(0.15, f(0.25, 0.3))),
        "dust": replace(pen, specks=(20, f(60, 90))),
        "tiny": replace(pen, side=(60, 80), aspect=(1, 1.2), share=(0.45, 0.7)),
        "small": replace(pen, side=(100, 150)),
        "large": replace(pen, side=(1200, 1600)),
        "12 megapixels": replace(pen, side=(3000, 3000), aspect=(1.33, 1.33), share=(0.15, 0.5), blur=(1.0, 2.0)),
        "small in the page": replace(pen, side=(500, 900), share=(f(0.07, 0.06), 0.14), offset=0.9),
        "large and off centre": replace(pen, share=(0.6, 0.75), offset=1.0),
        "inverted scan": replace(pen, invert=True, degrees=1, noise=(0, 0.004)),
        "ruled in shadow": replace(pen, ruling=lines, light="hard", depth=(0.3, 0.5), dark_share=(0.3, 0.5)),
        "squared, pencil": replace(pen, ruling=squares, pen=Pen(width=1.5, opacity=0.55, grain=0.3, colour=(0.3, 0.3, 0.3))),
        "photo, everything": replace(
            replace(pen, texture="crumpled", strength=0.03, light="soft", depth=(0.3, 0.5), dark_share=(0.2, 0.5)),
            table=1,
            perspective=0.08,
        ),
    }  # fmt: skip


def _photograph(shot: Shot, digits: Sequence[Digit], random: Random) -> tuple[Digit, int]:
    """The picture as uint8[H, W, 3], and the quality of its JPEG file; 0 for PNG. Several digits stand side by side."""
    short = random.uniform(*shot.side)
    shape = (round(short), round(short * random.uniform(*shot.aspect)))
    unit = short * random.uniform(*shot.share)
    free = np.array(
        [max(side - unit * 1.15 * number, 0) / 2 for side, number in zip(shape, (1, max(1, len(digits))), strict=True)]
    )
    row, column = np.array(shape) / 2 + random.uniform(-1, 1, 2) * free * shot.offset
    picture = scene.sheet(shape, shot.paper, unit, shot.texture, shot.strength, random)
    if shot.ruling:
        picture = scene.rule(picture, shot.ruling, unit, (row, column), random)
    step = unit * random.uniform(0.75, 1.1)
    for number, digit in enumerate(digits):
        at = column + step * (number - (len(digits) - 1) / 2)
        coverage = _placed(draw(digit, unit, shot.pen, random), shape, row, at)[..., None]
        picture = picture * (1 - coverage) + np.array(shot.pen.colour, np.float32) * coverage
    if shot.table:
        picture = scene.table_edge(picture, shot.table, shot.table_share, shot.table_colour, random)
    if shot.specks[1]:
        picture = scene.specks(picture, random.uniform(*shot.specks), unit * 0.02, float(random.uniform(0.2, 0.5)), random)
    if shot.degrees or shot.perspective:
        picture = scene.turn(picture, random.uniform(-shot.degrees, shot.degrees), shot.perspective, random)
    if shot.light:
        field = scene.light(shape, shot.light, random.uniform(*shot.depth), random.uniform(*(shot.dark_share)), random)
        picture = picture * field[..., None]
    if shot.glare:
        picture = scene.glare(picture, shot.glare, (row, column), unit, random)
    scale = short / 400
    picture = scene.blur(picture, random.uniform(*shot.blur) * max(1.0, scale), random.uniform(*shot.motion) * scale, random)
    if shot.noise[1]:
        picture = picture + random.normal(0, random.uniform(*shot.noise), shape).astype(np.float32)[..., None]
    levels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return (255 - levels if shot.invert else levels), round(random.uniform(*shot.jpeg))


def _placed(coverage: Field, shape: tuple[int, int], row: float, column: float) -> Field:
    """The digit's coverage on the whole page, with its middle at a row and a column."""
    page = np.zeros(shape, np.float32)
    top, left = round(row - coverage.shape[0] / 2), round(column - coverage.shape[1] / 2)
    rows = slice(max(top, 0), min(top + coverage.shape[0], shape[0]))
    columns = slice(max(left, 0), min(left + coverage.shape[1], shape[1]))
    page[rows, columns] = coverage[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return page


def _png(pixels: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def _tight(digit: Digit, random: Random, height: float) -> Digit:
    """Black ink on white, cut exactly to the ink."""
    coverage = draw(digit, height, Pen(), random)
    rows, columns = np.nonzero(coverage > 0.5)
    cut = coverage[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return np.round(255 * (1 - cut)).astype(np.uint8)


def _upscaled(digit: Digit, factor: int) -> Digit:
    return np.asarray(cv2.resize(digit, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC), np.uint8)


def _transparent(digit: Digit, random: Random, level: int) -> bytes:
    coverage = draw(digit, random.uniform(60, 300), Pen(width=2.0), random)
    pixels = np.full((*coverage.shape, 4), level, np.uint8)
    pixels[..., 3] = np.round(coverage * 255)
    return _png(pixels)


PLAIN: dict[str, Callable[[Digit, Random], bytes]] = {
    "MNIST": lambda digit, random: _png(digit),
    "MNIST, dark on light": lambda digit, random: _png(255 - digit),
    "MNIST, 56x56": lambda digit, random: _png(_upscaled(digit, 2)),
    "MNIST, 140x140": lambda digit, random: _png(255 - _upscaled(digit, 5)),
    "MNIST, 20x20": lambda digit, random: _png(digit[4:24, 4:24]),
    "cut to the ink": lambda digit, random: _png(_tight(digit, random, random.uniform(24, 400))),
    "cut, white on black": lambda digit, random: _png(255 - _tight(digit, random, random.uniform(24, 400))),
    "cut, 1 pixel around": lambda digit, random: _png(np.pad(_tight(digit, random, random.uniform(24, 400)), 1, constant_values=255)),  # noqa: E501
    "cut above and below": lambda digit, random: _png(
        np.pad(cut := _tight(digit, random, random.uniform(24, 400)), ((0, 0), (cut.shape[0] // 3,) * 2), constant_values=255)
    ),
    "transparent": lambda digit, random: _transparent(digit, random, 20),
    "transparent, white ink": lambda digit, random: _transparent(digit, random, 250),
}  # fmt: skip
"""Clean images: these were right before."""


def names(family: str) -> list[str]:
    """All kinds, the clean ones first."""
    return [*PLAIN, *shots(family)]


def image(kind: str, family: str, digits: Sequence[Digit], random: Random) -> bytes:
    """An image file of this kind that shows the digits: one, or in photographs also none or several."""
    if kind in PLAIN:
        (digit,) = digits
        return PLAIN[kind](digit, random)
    pixels, quality = _photograph(shots(family)[kind], digits, random)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes() if quality else _png(pixels)
