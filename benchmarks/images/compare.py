"""How many digits on paper are read right, by kind of image.

    python -m benchmarks.images.compare MODEL --seeds 0 1 2 --json after.json
    python -m benchmarks.images.compare --tables before.json after.json

The first command draws images, predicts them with a bundle, and saves the counts by kind. The second one prints two such
files side by side. The handwriting is from MNIST's training part. To measure another version of the preprocessing rule, run
the first command with that version's folder in PYTHONPATH. `--digits 0` and `--digits 2` draw blank pages and pairs, which
should be refused. `--write FOLDER` also saves the images.
"""

import argparse
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.images import kinds
from mnist_ray import load_model
from mnist_ray.data import datasets
from mnist_ray.data.containers import Rejection
from mnist_ray.data.digits import LabelledDigits
from mnist_ray.data.images import decode, normalise

SURE = 0.7
"""A wrong answer of this confidence or more misleads its reader."""
FEW = {"12 megapixels": 4}
"""Kinds of which fewer images are drawn, because they are large."""

Counts = dict[str, int]


@cache
def _handwriting() -> LabelledDigits:
    return datasets.load("mnist").train


def images(kind: str, family: str, seed: int, count: int, number: int) -> Iterator[tuple[bytes, int]]:
    """Image files of one kind with a `number` of digits, and the first digit, or -1. They depend only on the arguments."""
    digits = _handwriting()
    random = np.random.default_rng([seed, ord(family), *kind.encode()])
    for _ in range(min(count, FEW.get(kind, count))):
        rows = random.integers(0, len(digits), number)
        yield kinds.image(kind, family, list(digits.images[rows]), random), int(digits.labels[rows[0]]) if number else -1


def measure(model: Any, kind: str, seed: int, args: argparse.Namespace) -> Counts:
    """Draw images of a kind and count the right, wrong, wrong but sure, and refused ones."""
    files, truths = zip(*images(kind, args.family, seed, args.count, args.digits), strict=True)
    if folder := args.write:
        for number, (data, truth) in enumerate(zip(files, truths, strict=True)):
            place = (
                folder / f"{kind.replace('/', ' ')}" / f"{seed}-{number:03d}-{truth}.{'png' if data[1:4] == b'PNG' else 'jpg'}"
            )
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
    greys = [decode(data) for data in files]
    assert not any(isinstance(grey, Rejection) for grey in greys)
    digits, rejected = normalise(greys)
    predictions = model.predictor(digits)
    taken = ~np.isin(np.arange(len(truths)), list(rejected))
    right = (predictions.labels == np.array(truths)) & taken
    wrong = ~right & taken
    sure = wrong & (predictions.confidence >= SURE)
    counted = {"images": taken, "right": right, "wrong": wrong, "sure": sure, "refused": ~taken}
    return {name: int(len(found) if name == "images" else found.sum()) for name, found in counted.items()}


def _cells(counts: Counts) -> str:
    return f"{counts['right'] / counts['images']:8.1%} {counts['sure']:5} {counts['refused']:7}"


def table(results: list[dict[str, Counts]]) -> Iterator[str]:
    """The lines of a table: accuracy, wrong at a confidence of at least `SURE`, and refused, by kind, for some results."""
    yield f"{'kind':24} {'images':>6}" + f"   {'right':>8} {f'>={SURE}':>5} {'refused':>7}" * len(results)
    total = [dict.fromkeys(next(iter(result.values())), 0) for result in results]
    for kind in results[-1]:
        rows = [result.get(kind) or dict.fromkeys(total[0], 1) for result in results]
        yield f"{kind:24} {rows[-1]['images']:6}" + "".join(f"   {_cells(row)}" for row in rows)
        for sums, row in zip(total, rows, strict=True):
            for name, number in row.items():
                sums[name] += number
    yield f"{'all':24} {total[-1]['images']:6}" + "".join(f"   {_cells(sums)}" for sums in total)


def main() -> None:
    """Measure and print the table, or print saved tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="run directory or bundle")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--family", choices=["a", "b"], default="b")
    parser.add_argument("--count", type=int, default=20, help="images for each kind and seed")
    parser.add_argument("--digits", type=int, default=1, help="digits in each image; 0 and 2 should be refused")
    parser.add_argument("--kinds", nargs="+", help="default: all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--tables", type=Path, nargs="+")
    args = parser.parse_args()
    if args.tables:
        print("\n".join(table([json.loads(path.read_text()) for path in args.tables])))
        return
    model = load_model(args.model, device="cpu")
    result: dict[str, Counts] = {}
    drawn = kinds.names(args.family) if args.digits == 1 else list(kinds.shots(args.family))
    for kind in args.kinds or drawn:
        parts = [measure(model, kind, seed, args) for seed in args.seeds]
        result[kind] = {name: sum(part[name] for part in parts) for name in parts[0]}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(table([result])))


if __name__ == "__main__":
    main()
