"""Write the test or training part of a dataset as a folder of PNG files, one subfolder per digit."""

import sys
from dataclasses import dataclass
from typing import Literal

import tyro

from mnist_ray.data.datasets import load, write_folder
from mnist_ray.errors import MnistRayError


@dataclass
class WriteDigits:
    """Write a part of a dataset as PNG files: OUT/7/00042.png is image 42, a seven."""

    out: str
    data: str = "auto"
    part: Literal["test", "train"] = "test"


if __name__ == "__main__":
    job = tyro.cli(WriteDigits)
    try:
        write_folder(getattr(load(job.data, print), job.part), job.out)
    except MnistRayError as error:
        sys.exit(f"error: {error}")
