"""`python jobs/train.py …` is the same as `mnist-ray train …`."""

import sys

from mnist_ray.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    sys.exit(main())
