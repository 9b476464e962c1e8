"""`python jobs/evaluate.py …` is the same as `mnist-ray evaluate …`."""

import sys

from mnist_ray.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "evaluate")
    sys.exit(main())
