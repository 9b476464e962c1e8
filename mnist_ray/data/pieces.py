"""The connected pieces of ink, and the choice of those that form the digit: the third part of the rule in `paper.py`.

The digit is the heaviest piece that does not touch the border, with the pieces close to it. Frames, dashes and specks are
dropped. A piece that touches the border is the digit only if there is no other, and if it lies across the middle of the image.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_ray.data.light import Field

Labels = NDArray[np.int32]
MOST = 40
"""The lighter pieces are specks."""
SMALLEST_DIGIT = 0.025
"""As a share of the image's longer side."""
FAINTEST_DIGIT = 1.25
"""Mean depth of a digit's ink over the level of the noise."""
SEVERAL_FROM = 12
"""Pixels of the height from which on pieces are told from specks."""


@dataclass(frozen=True)
class Piece:
    """A connected piece of ink."""

    label: int
    left: int
    top: int
    width: int
    height: int
    area: int
    mass: float
    """Sum of the depths."""
    touches: bool
    """Whether it touches the border of the image."""
    middle: bool
    """Whether the middle of the image is inside of its box."""

    @property
    def side(self) -> int:
        """The longer side."""
        return max(self.width, self.height)

    @property
    def box(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def pieces_of(depth: Field, low: float) -> tuple[Labels, list[Piece]]:
    """The labels of the connected pieces of ink, int32[H, W], and the heaviest pieces in order."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((depth > low).astype(np.uint8))
    inside = labels > 0
    masses = np.bincount(labels[inside], weights=depth[inside], minlength=len(stats))
    height, width = depth.shape
    pieces = []
    for label in np.argsort(-masses[1:])[:MOST] + 1:
        left, top, wide, high, area = stats[label].tolist()
        touches = left == 0 or top == 0 or left + wide == width or top + high == height
        middle = left <= width / 2 <= left + wide and top <= height / 2 <= top + high
        pieces.append(Piece(int(label), left, top, wide, high, area, float(masses[label]), touches, middle))
    return np.asarray(labels, np.int32), pieces


def digit_of(pieces: list[Piece]) -> list[Piece]:
    """The pieces that form the digit, the main one first; none if no piece can be a digit."""
    pieces = [piece for piece in pieces if not _is_print(piece, pieces)]
    inside = [piece for piece in pieces if not piece.touches]
    if inside and inside[0].mass >= 0.1 * pieces[0].mass:
        pieces = inside
    pieces = [piece for piece in pieces if not piece.touches or piece.middle]
    return [piece for piece in pieces if piece is pieces[0] or _belongs(piece, pieces[0])]


def _is_print(piece: Piece, pieces: list[Piece]) -> bool:
    """Whether a piece is a dash, or a frame around another large one."""
    return piece.height <= 0.12 * piece.width or any(_encloses(piece, other) for other in pieces[:8])


def _belongs(piece: Piece, main: Piece) -> bool:
    """Whether a piece is so large, and so close to the main one, that it is a part of the same digit."""
    if piece.side < 0.12 * main.side or piece.mass < 0.02 * main.mass:
        return False
    across, down = _gaps(piece, main)
    return across <= 0.12 * main.side and down <= (0.3 if across < -0.5 * piece.width else 0.12) * main.side


def _gaps(piece: Piece, main: Piece) -> tuple[int, int]:
    """The space between two boxes across and down; negative if they overlap."""
    across = max(piece.left, main.left) - min(piece.left + piece.width, main.left + main.width)
    down = max(piece.top, main.top) - min(piece.top + piece.height, main.top + main.height)
    return across, down


def is_speck(piece: Piece, low: float, shape: tuple[int, ...]) -> bool:
    """Whether a piece is too small for a digit, or hardly darker than the noise of the paper."""
    return piece.side < SMALLEST_DIGIT * max(shape) or piece.mass < FAINTEST_DIGIT * low * piece.area


def _encloses(outer: Piece, inner: Piece) -> bool:
    return (
        outer.left < inner.left
        and outer.top < inner.top
        and inner.left + inner.width < outer.left + outer.width
        and inner.top + inner.height < outer.top + outer.height
        and inner.height > 0.25 * outer.height
        and inner.mass > 0.1 * outer.mass
    )


def other_digits(pieces: list[Piece], main: Piece) -> int:
    """The number of pieces that are apart from the main one and like it."""
    if main.height < SEVERAL_FROM:
        return 0
    return sum(_like(piece, main) and _apart(piece, main) and not _is_print(piece, pieces) for piece in pieces)


def _like(piece: Piece, main: Piece) -> bool:
    """Whether a piece has about as much ink as the main one, and as dark ink."""
    darkness = piece.mass * main.area / (main.mass * piece.area)
    return not piece.touches and piece.mass > 0.35 * main.mass and 0.75 < darkness < 1.33


def _apart(piece: Piece, main: Piece) -> bool:
    """Whether two pieces are no parts of one digit. Parts that are as broad as digits are seldom side by side."""
    across, down = _gaps(piece, main)
    broad = all(part.width > 0.4 * part.height for part in (piece, main)) and 0.7 < piece.height / main.height < 1.4
    return across > 0.15 * main.side or down > 0.4 * main.side or (broad and across > 0.03 * main.side)
