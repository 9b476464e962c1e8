"""`python jobs/train.py …` is the same as `mnist-ray train …`."""

import sys

from mnist_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    sys.exit(main())
