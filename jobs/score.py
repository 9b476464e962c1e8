"""`python jobs/score.py …` is the same as `mnist-ray score …`."""

import sys

from mnist_ray.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "score")
    sys.exit(main())
