"""Traits of drawn digits with known values, and the sentences about them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from mnist_ray.data.traits import PICTURED, TRAITS, compare_traits, count_traits

ROWS, COLUMNS = np.indices((28, 28))
DISTANCE = np.hypot(ROWS - 13.5, COLUMNS - 13.5)
BAR = (np.abs(ROWS - 13.5) < 2) & (np.abs(COLUMNS - 13.5) < 10)
"""A level bar of 4 x 20 pixels in the middle."""


def bin_of(trait: str, value: float) -> list[int]:
    """The histogram of one digit with this value."""
    counts: list[int] = np.histogram([value], TRAITS[trait].edges)[0].tolist()
    return counts


@pytest.mark.parametrize(
    ("ink", "share", "width", "distance"),
    [
        # 2 area / perimeter, with pi / 4 times 2 (20 + 4) pixels of edge.
        (255 * BAR, 80 / 784, 2 * 80 / (np.pi / 4 * 48), 0),
        (100 * BAR, 80 * 100 / 255 / 784, 2 * 80 / (np.pi / 4 * 48), 0),
        (255 * np.roll(BAR, (3, 4), (0, 1)), 80 / 784, 2 * 80 / (np.pi / 4 * 48), 5.0001),
        # The width of a ring is the difference of its radii.
        (255 * ((DISTANCE < 10) & (DISTANCE > 6.5)), np.pi * (100 - 42.25) / 784, 3.5, 0),
        (255 * (np.abs(ROWS - COLUMNS) < 2), 82 / 784, 0.9 * 2.12, 0),
        (np.full((28, 28), 255), 1, 2 * 784 / (np.pi / 4 * 112), 0),
        (np.zeros((28, 28)), 0, 0, 0),
    ],
    ids=["bar", "faint", "shifted", "ring", "diagonal", "full", "blank"],
)
def test_drawn_images_have_their_traits(ink: NDArray[np.float64], share: float, width: float, distance: float) -> None:
    found = count_traits(ink.astype(np.uint8)[None])
    values = dict(zip(PICTURED, (share, width, distance), strict=True))
    assert found == {name: bin_of(name, value) for name, value in values.items()}


def test_traits_of_several_digits_add_up() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    one_by_one = [count_traits(image[None]) for image in images]
    assert count_traits(images) == {name: np.sum([one[name] for one in one_by_one], axis=0).tolist() for name in PICTURED}
    assert set(map(sum, count_traits(images[:0]).values())) == {0}


def test_a_sentence_says_in_which_direction_the_inputs_differ() -> None:
    usual = [0, 0, 10, 300, 500, 300, 10, 0, 0]

    def words(found: list[int]) -> str:
        return str(
            compare_traits({**{name: [] for name in TRAITS}, "ink_share": found}, {"ink_share": usual})["ink_share"]["words"]
        )

    assert words(usual) == ""
    assert words([0, 10, 300, 500, 300, 10, 0, 0, 0]) == "digits have less ink than those the model was trained on"
    assert words([0, 0, 0, 0, 0, 0, 1, 300, 0]) == "digits have more ink than those the model was trained on"
    mixed = "digits have partly less ink, partly more ink than those the model was trained on"
    assert words([0, 400, 0, 0, 0, 0, 0, 400, 0]) == mixed
    assert words([0, 0, 0, 0, 0, 0, 0, 1, 0]) == "", "one image is too few to tell"


def test_nothing_is_said_without_a_reference() -> None:
    counts = {name: [3] for name in TRAITS}
    assert {(found["verdict"], found["words"]) for found in compare_traits(counts, {}).values()} == {("unknown", "")}
