"""Digits on paper: what is around a digit hardly changes it, and pages without one digit are refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mnist_ray.artifact import bundle
from mnist_ray.artifact.predictor import Predictor, pick_device
from mnist_ray.data.containers import Reason
from mnist_ray.data.digits import Splits
from mnist_ray.data.images import Grey, normalise, to_digits


def test_photos_are_read_nearly_as_well_as_mnist_images(mnist5k: Splits, run_dir: Path) -> None:
    """The photos of the digits are larger, with dark ink on grey paper, off centre and with noise."""
    random = np.random.default_rng(0)
    photos = []
    for image in mnist5k.test.images:
        large = np.asarray(Image.fromarray(image).resize((90, 90), Image.Resampling.BICUBIC), np.float32)
        paper = np.full((160, 200), 205.0, np.float32)
        top, left = random.integers(5, 60), random.integers(5, 100)
        paper[top : top + 90, left : left + 90] -= large * 0.6
        photos.append(np.clip(paper + random.normal(0, 4, paper.shape), 0, 255).astype(np.uint8))
    predict = Predictor.ready(bundle.load(str(run_dir)), pick_device("cpu"))
    plain = (predict(mnist5k.test.images).labels == mnist5k.test.labels).mean()
    photographed = (predict(to_digits(photos)).labels == mnist5k.test.labels).mean()
    assert photographed > plain - 0.02


def on_paper(digit: Grey, place: tuple[int, int] = (60, 90)) -> NDArray[np.float64]:
    """A page with dark ink on light paper, from 0 to 255."""
    large = np.asarray(Image.fromarray(digit).resize((112, 112), Image.Resampling.BICUBIC), np.float64)
    page = np.full((240, 320), 220.0)
    page[place[0] : place[0] + 112, place[1] : place[1] + 112] -= large * 0.7
    return page


def _shadow(page: NDArray[np.float64]) -> None:
    rows, columns = np.indices(page.shape)
    page[rows + 2 * columns < 260] *= 0.5


def _table(page: NDArray[np.float64]) -> None:
    page[:12] = 30
    page[:, 290:] = 35


def _strip(page: NDArray[np.float64]) -> None:
    page[:, :6] = 20


def _ruled(page: NDArray[np.float64]) -> None:
    page[20::50] *= 0.7
    page[21::50] *= 0.7


def _dust(page: NDArray[np.float64]) -> None:
    page[7::37, 5::41] = 60


def _box(page: NDArray[np.float64]) -> None:
    page[[50, 51, 182, 183], 70:230] = 60
    page[50:184, [70, 71, 228, 229]] = 60


def _underline(page: NDArray[np.float64]) -> None:
    page[166:169, 30:280] = 60


@pytest.mark.parametrize("spoil", [_shadow, _table, _strip, _ruled, _dust, _box, _underline])
def test_what_is_on_the_paper_besides_the_digit_hardly_changes_it(
    spoil: Callable[[NDArray[np.float64]], None], mnist5k: Splits
) -> None:
    differences = []
    for image in mnist5k.test.images[::25]:
        clean, spoilt = on_paper(image), on_paper(image)
        spoil(spoilt)
        digits = to_digits([page.clip(0, 255).astype(np.uint8) for page in (clean, spoilt)]).astype(int)
        differences.append(np.abs(digits[0] - digits[1]).sum() / digits[0].sum())
    assert np.median(differences) < 0.25


def test_a_digit_cut_to_its_ink_is_read_like_one_on_a_page(mnist5k: Splits) -> None:
    random, differences = np.random.default_rng(0), []
    for image in mnist5k.test.images[::25]:
        page = (on_paper(image) + random.normal(0, 2, (240, 320))).clip(0, 255).astype(np.uint8)
        rows, columns = np.nonzero(page < 150)
        cut = page[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        digits = to_digits([page, cut]).astype(int)
        differences.append(np.abs(digits[0] - digits[1]).sum() / digits[0].sum())
    assert np.quantile(differences, 0.8) < 0.25  # a digit may move by a pixel


@pytest.mark.parametrize("noise", [0, 3])
@pytest.mark.parametrize("print_on", [_shadow, _strip, _ruled, _underline, _table])
def test_a_page_without_a_digit_is_blank(print_on: Callable[[NDArray[np.float64]], None], noise: float) -> None:
    page = np.full((240, 320), 220.0)
    print_on(page)
    page += np.random.default_rng(0).normal(0, noise, page.shape)
    _, rejected = normalise([page.clip(0, 255).astype(np.uint8)])
    assert rejected[0].reason == Reason.BLANK_IMAGE


def test_blank_pages_and_several_digits_are_refused(mnist5k: Splits) -> None:
    three, eight = (mnist5k.test.images[np.flatnonzero(mnist5k.test.labels == label)[0]] for label in (3, 8))
    pair = np.minimum(on_paper(three, (60, 40)), on_paper(eight, (60, 160)))
    shaded = np.full((240, 320), 220.0)
    _shadow(shaded)
    noisy = 200 + np.random.default_rng(0).normal(0, 5, (240, 320))
    pages = [page.astype(np.uint8) for page in (on_paper(three), pair, shaded, noisy)]
    _, rejected = normalise(pages)
    assert {position: rejection.reason for position, rejection in rejected.items()} == {
        1: Reason.SEVERAL_DIGITS,
        2: Reason.BLANK_IMAGE,
        3: Reason.BLANK_IMAGE,
    }
    assert to_digits(pages[1:2]).any(), "training takes the largest digit"


def test_enlarged_digits_are_never_refused(mnist5k: Splits) -> None:
    for side in (40, 84):
        enlarged = [np.asarray(Image.fromarray(255 - image).resize((side, side))) for image in mnist5k.test.images]
        assert normalise(enlarged)[1] == {}
