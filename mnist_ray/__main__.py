"""python -m mnist_ray"""

from mnist_ray.cli import main

raise SystemExit(main())
