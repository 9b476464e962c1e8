"""Traits of pictures by which inputs can differ from the digits of a model, and the sentences that say so."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnist_ray.data.statistics import CONFIDENCE_EDGES, drift

SAMPLE = 128
"""Most digits of a chunk whose traits are measured: evenly spaced ones, because inputs are often sorted. Each takes 4 µs."""
_SIDE = 28
_WEIGHTS = np.stack([np.ones((_SIDE, _SIDE)), *(np.indices((_SIDE, _SIDE)) - (_SIDE - 1) / 2)], dtype=np.float32)
"""For each pixel 1, and its row and column from the middle. The sums of a digit are exact in float32."""


class Trait(NamedTuple):
    """A trait, and the words of a sentence about inputs that have less or more of it."""

    edges: tuple[float, ...]
    """Edges of the bins. Cards hold counts between them, so other edges need another name of the trait."""
    unit: str
    subject: str
    less: str
    more: str
    than: str = "than those the model was trained on"


_INK = (0.0, 0.05, 0.08, 0.11, 0.14, 0.18, 0.23, 0.3, 0.45, 1.0)
_STROKE = (0.0, 1.25, 2.25, 3.0, 4.0, 5.5, 28.0)
_DISTANCE = (0.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 20.0)
CONFIDENCE = "confidence"
TRAITS = {
    CONFIDENCE: Trait(
        CONFIDENCE_EDGES, "probability", "the model is", "less sure", "surer", "of the inputs than of its test digits"
    ),
    "ink_share": Trait(_INK, "of full ink", "digits have", "less ink", "more ink"),
    "stroke_width": Trait(_STROKE, "pixels", "strokes are", "thinner", "thicker"),
    "centre_distance": Trait(_DISTANCE, "pixels", "digits are", "nearer to the middle", "further from the middle"),
}
"""The first bin of the distance holds what is centred by its mass: MNIST, and all that `images.py` has centred. Both round to
whole pixels. So the distance tells only of 28x28 images, which are taken as they are."""
PICTURED = tuple(name for name in TRAITS if name != CONFIDENCE)
"""The traits that pictures have without a model."""
NOTHING = {name: [0] * (len(TRAITS[name].edges) - 1) for name in PICTURED}
"""The counts of no digits."""


def count_traits(digits: NDArray[np.uint8]) -> dict[str, list[int]]:
    """The number of digits, uint8[N, 28, 28], in each bin of each of the traits `PICTURED`.

    - `ink_share`: the mean of the pixels, from 0 to 1.
    - `stroke_width`: 2 area / perimeter, in pixels, which holds for a long stroke. The area is the sum of the pixels. The
      perimeter is pi / 4 times the sum of all differences between neighbours in a row or column: the Cauchy-Crofton formula
      with two directions (M. do Carmo, Differential Geometry of Curves and Surfaces, 1976). Faint ink changes both alike. The
      width comes out 27 % larger for a level or upright stroke, and 10 % smaller for a diagonal one.
    - `centre_distance`: from the centre of mass to the middle of the field, in pixels.
    """
    framed = np.pad(digits, ((0, 0), (1, 1), (1, 1))).reshape(-1, (_SIDE + 2) ** 2)  # so that no row touches the next one
    steps = ((framed[:, step:], framed[:, :-step]) for step in (1, _SIDE + 2))
    edges = sum((np.maximum(a, b) - np.minimum(a, b)).sum(1, dtype=np.uint32) for a, b in steps)
    ink, rows, columns = np.einsum("nij,kij->kn", digits.astype(np.float32), _WEIGHTS)
    distance = np.hypot(rows, columns) / np.maximum(ink, 1)
    values = (ink / (255 * _SIDE**2), 2 * ink / (np.pi / 4 * np.maximum(edges, 1)), distance)
    return {name: np.histogram(value, TRAITS[name].edges)[0].tolist() for name, value in zip(PICTURED, values, strict=True)}


def compare_traits(found: Mapping[str, list[int]], reference: Mapping[str, list[int]]) -> dict[str, dict[str, Any]]:
    """For each trait its unit, its edges, its drift (see `statistics`) and `words`: a sentence if the drift is large.

    Moderate drift is usual among digits of MNIST, too: their writers differ. A trait without a reference has no drift.
    """
    return {name: _compare(trait, found[name], reference.get(name)) for name, trait in TRAITS.items()}


def _compare(trait: Trait, found: list[int], reference: list[int] | None) -> dict[str, Any]:
    about = drift(found, reference)
    words = _sentence(trait, found, reference) if reference and about["verdict"] == "large" else ""
    return {"unit": trait.unit, "edges": trait.edges, **about, "words": words}


def _sentence(trait: Trait, counts: list[int], known: list[int]) -> str:
    """What a large drift means. If some of the inputs have less of the trait and some have more, it says both."""
    found, reference = (np.cumsum(values) / sum(values) for values in (counts, known))
    more, less = (max(0.0, float(gap.max())) for gap in (reference - found, found - reference))
    both = f"partly {trait.less}, partly {trait.more}"
    how = trait.more if more > 4 * less else trait.less if less > 4 * more else both
    return f"{trait.subject} {how} {trait.than}"
