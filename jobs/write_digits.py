"""Writes the test or training digits of a dataset as PNG files."""

import sys
from typing import Literal

import tyro

from mnist_ray.data.datasets import load, write_folder
from mnist_ray.errors import MnistRayError


def write_digits(out: str, data: str = "auto", part: Literal["test", "train"] = "test") -> None:
    """Write the digits of a dataset as PNG files with one subfolder per digit: OUT/7/00042.png is image 42, a seven.

    Args:
        out: Folder to write to.
        data: Dataset to read; the same values as for train.
        part: Part of the dataset to write.
    """
    splits = load(data, print)
    write_folder(getattr(splits, part), out)


if __name__ == "__main__":
    try:
        tyro.cli(write_digits)
    except MnistRayError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
