"""What scoring large photos costs: seconds and peak memory of `mnist-ray score` for JPEG files of 12 megapixels.

    python -m benchmarks.images.photos runs/digits --count 200 --workers 0 2

The photos show MNIST's digits on paper, in shadow and on lines. Memory is the sum of the proportional set sizes of all
processes of the job, at its highest. Each of `--workers` is a job of its own.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.images.compare import images
from benchmarks.score.compare import run

DRAWN = 4
"""Different photos. More would take longer to draw than to score."""


def main() -> None:
    """Draw the photos, score them and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run directory or bundle")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--workers", nargs="+", choices=["0", "1", "2"], default=["0"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = [data for data, _ in images("12 megapixels", "b", 0, DRAWN, 1)]
        for number in range(args.count):
            (Path(folder) / f"{number:04d}.jpg").write_bytes(photos[number % DRAWN])
        size = sum(map(len, photos)) / len(photos) / 1e6
        print(f"{args.count} photos of 12 megapixels, {size:.1f} MB each")
        for workers in args.workers:
            done = run(f"ours-{workers}", folder, args.model, memory=True)
            print(f"--workers {workers}: {done['seconds']:.1f} s, {done['megabytes']:.0f} MiB at most")


if __name__ == "__main__":
    main()
