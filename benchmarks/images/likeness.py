"""How many inputs that are no handwritten digits are found: by the preprocessing rule, or by a `digit_likeness` below 0.01.

    python -m benchmarks.images.likeness --model runs/digits

Without --model, a model is trained by the recipe `fast`. Letters, symbols, printed digits, shapes and scribbles are drawn on
pages, in the fonts of matplotlib. Textures are 28x28, because the rule takes most larger ones for blank pages. The last two
lines are real digits for contrast: those of MNIST's test part, and the same on pages.
"""

import argparse
import string
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import mnist_ray
from mnist_ray.data import datasets
from mnist_ray.data.digits import UNLIKE
from mnist_ray.data.images import Grey, normalise

Random = np.random.Generator
FONTS = ("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic", "STIXGeneral")
SYMBOLS = "!?&@#$%+=*/<>[]{}~^"
PAGE, TEXTURE = 96, 28
"""Pixels of the sides of a page and of a texture."""


@cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), 52)


def _text(characters: str, number: int, random: Random) -> Grey:
    """Some of the characters in dark ink on a page."""
    page = Image.new("L", (PAGE, PAGE), 255)
    text = "".join(random.choice(list(characters), number))
    ImageDraw.Draw(page).text((PAGE / 2, PAGE / 2), text, fill=0, font=_font(str(random.choice(FONTS))), anchor="mm")
    return np.asarray(page)


def _noise(random: Random) -> Grey:
    return random.integers(0, 256, (TEXTURE, TEXTURE)).astype(np.uint8)


def _blank(random: Random) -> Grey:
    return np.round(random.uniform(0, 250) + random.uniform(0, 5, (TEXTURE, TEXTURE))).astype(np.uint8)


def _clouds(random: Random) -> Grey:
    blurred = cv2.GaussianBlur(random.normal(0, 1, (TEXTURE, TEXTURE)), (0, 0), random.uniform(1.5, 4))
    return np.asarray(255 * (blurred - blurred.min()) / np.ptp(blurred), np.uint8)


def _stripes(random: Random) -> Grey:
    y, x = np.mgrid[:TEXTURE, :TEXTURE]
    angle, period = random.uniform(0, np.pi), random.uniform(3, 12)
    waves = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + random.uniform(0, 6))
    return np.asarray(np.round(127.5 * (1 + waves)), np.uint8)


def _shape(random: Random) -> Grey:
    """A triangle, square, pentagon or hexagon, an outline or filled."""
    page = np.full((PAGE, PAGE), 255, np.uint8)
    corners, radius = int(random.integers(3, 7)), random.uniform(20, 36)
    angles = random.uniform(0, 6) + np.arange(corners) * 2 * np.pi / corners
    points = np.round(PAGE / 2 + radius * np.stack([np.cos(angles), np.sin(angles)], 1)).astype(np.int32)
    if random.random() < 0.5:
        return np.asarray(cv2.fillPoly(page, [points], 0, cv2.LINE_AA), np.uint8)
    return np.asarray(cv2.polylines(page, [points], True, 0, int(random.integers(3, 9)), cv2.LINE_AA), np.uint8)


def _scribble(random: Random) -> Grey:
    """A long line that turns by chance."""
    page = np.full((PAGE, PAGE), 255, np.uint8)
    steps = np.cumsum(cv2.blur(random.normal(0, 1, (200, 2)), (1, 15)), axis=0)
    points = (steps - steps.min(axis=0)) / np.ptp(steps, axis=0).max() * 64 + 16
    return np.asarray(cv2.polylines(page, [np.round(points).astype(np.int32)], False, 0, 5, cv2.LINE_AA), np.uint8)


KINDS: dict[str, Callable[[Random], Grey]] = {
    "letters": lambda random: _text(string.ascii_letters, 1, random),
    "two letters": lambda random: _text(string.ascii_letters, 2, random),
    "symbols": lambda random: _text(SYMBOLS, 1, random),
    "shapes": _shape,
    "scribbles": _scribble,
    "stripes": _stripes,
    "clouds": _clouds,
    "noise": _noise,
    "blank": _blank,
    "printed digits": lambda random: _text(string.digits, 1, random),
}


def _line(kind: str, images: Sequence[Grey], model: Any) -> str:
    digits, rejected = normalise(images)
    taken = ~np.isin(np.arange(len(digits)), list(rejected))
    unlike = (model.predictor(digits).likeness < UNLIKE) & taken
    return f"{kind:18} {(~taken).mean():8.1%} {unlike.mean():8.1%} {(unlike | ~taken).mean():8.1%}"


def main() -> None:
    """Draw, predict and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="run directory or bundle")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--count", type=int, default=500, help="images for each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as run:
        if not args.model:
            mnist_ray.train(out=run, data=args.data, recipe="fast", workers=0, seed=args.seed)
        model = mnist_ray.load_model(args.model or run, device="cpu")
    print(f"{'kind':18} {'refused':>8} {'unlike':>8} {'found':>8}")
    for kind, draw in KINDS.items():
        random = np.random.default_rng([args.seed, *kind.encode()])
        print(_line(kind, [draw(random) for _ in range(args.count)], model), flush=True)
    test = datasets.load(args.data).test.images[: args.count]
    print(_line("MNIST", list(test), model))
    print(
        _line("MNIST on pages", [np.pad(cv2.resize(255 - image, (64, 64)), 16, constant_values=255) for image in test], model)
    )


if __name__ == "__main__":
    main()
