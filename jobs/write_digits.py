"""Write the test part of a dataset as a folder of PNG files, one subfolder per digit."""

import sys
from dataclasses import dataclass

import tyro

from mnist_ray.data.datasets import load, write_folder
from mnist_ray.errors import MnistRayError


@dataclass
class WriteDigits:
    """Write the test part of a dataset as PNG files: OUT/7/00042.png is image 42, a seven."""

    out: str
    data: str = "auto"


if __name__ == "__main__":
    job = tyro.cli(WriteDigits)
    try:
        write_folder(load(job.data, print).test, job.out)
    except MnistRayError as error:
        sys.exit(f"error: {error}")
