"""Finds the ink of a digit on paper, in photographs and scans of any size: step 5 of the rule in `images.py`.

1. The depth of the ink is found: how much darker or lighter than its background each pixel is (`light.py`).
2. Printed lines and boxes are removed (`lines.py`).
3. The digit is chosen among the connected pieces of ink (`pieces.py`).
4. A stroke much thinner or thicker than those of MNIST is widened or thinned (`stroke.py`).

All sizes are relative to the image.
"""

import numpy as np

from mnist_ray.data.containers import Reason, Rejection
from mnist_ray.data.light import Field, Grey, ink_depth, shrink
from mnist_ray.data.lines import without_box, without_lines
from mnist_ray.data.pieces import digit_of, is_speck, other_digits, pieces_of
from mnist_ray.data.stroke import ink_of, with_usual_width

LONGER_SIDE = 400
"""An image is analysed at no more than this many pixels."""
LOOK_AGAIN = 64
"""A digit that is smaller than this in the analysis is cut out of the image and analysed again."""


def read(grey: Grey, one_digit: bool) -> Field | Rejection:
    """The ink of the digit, float32[H, W] from 0 to 255; or a Rejection: no ink, or with `one_digit`, several digits."""
    return _look(grey, shrink(grey, LONGER_SIDE), one_digit)


def _look(grey: Grey, small: Grey, one_digit: bool, again: bool = True) -> Field | Rejection:
    """Find the digit in `small`, which is `grey` or a reduced copy of it. If the digit is small, look `again`, closer."""
    depth, low = ink_depth(small)
    depth = without_lines(depth, low)
    labels, pieces = pieces_of(depth, low)
    chosen = digit_of(pieces)
    if chosen and (rest := without_box(depth, low, chosen[0])) is not depth:
        depth = rest
        labels, pieces = pieces_of(depth, low)
        chosen = digit_of(pieces)
    if not chosen or is_speck(chosen[0], low, small.shape):
        return Rejection(Reason.BLANK_IMAGE, "has no ink that could be a digit")
    if one_digit and (others := other_digits(pieces, chosen[0])):
        return Rejection(Reason.SEVERAL_DIGITS, f"has {1 + others} separate pieces of ink as large as a digit")
    left, top = min(p.left for p in chosen), min(p.top for p in chosen)
    right, bottom = max(p.left + p.width for p in chosen), max(p.top + p.height for p in chosen)
    side = max(right - left, bottom - top)
    scale = max(grey.shape) / max(small.shape)
    if again and side < LOOK_AGAIN and scale > 1.5:
        margin = 0.5 * side
        rows = slice(max(0, int((top - margin) * scale)), int((bottom + margin) * scale) + 1)
        columns = slice(max(0, int((left - margin) * scale)), int((right + margin) * scale) + 1)
        cut = grey[rows, columns]
        closer = _look(cut, shrink(cut, LONGER_SIDE // 2), one_digit=False, again=False)
        if not isinstance(closer, Rejection):
            return closer
    box = (slice(top, bottom), slice(left, right))
    return with_usual_width(ink_of(depth[box], np.isin(labels[box], [p.label for p in chosen]), low))
