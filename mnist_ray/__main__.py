"""`python -m mnist_ray` is the same as `mnist-ray`."""

from mnist_ray.cli import main

raise SystemExit(main())
