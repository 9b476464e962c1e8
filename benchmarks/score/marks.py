"""Marks: one line per finished batch, with the time and the number of images. They give a steady rate."""

import os
import time
from pathlib import Path


class Marks:
    """Appends marks to a file of this process in `folder`."""

    def __init__(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._file = (Path(folder) / f"{os.getpid()}-{time.time_ns()}").open("a")

    def __call__(self, images: int) -> None:
        self._file.write(f"{time.time():.4f} {images}\n")
        self._file.flush()


def steady_rate(folder: str) -> float:
    """Images per second after the first marked batch; NaN if there is only one."""
    lines = [line.split() for path in Path(folder).iterdir() for line in path.read_text().splitlines()]
    marks = sorted((float(when), int(images)) for when, images in lines)
    (first, first_images), (last, _) = marks[0], marks[-1]
    return (sum(images for _, images in marks) - first_images) / (last - first) if last > first else float("nan")
