"""`python jobs/score.py …` is `mnist-ray score …`."""

import sys

from mnist_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
