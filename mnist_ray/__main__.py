"""The command `mnist-ray`, which `python -m mnist_ray` and the programs in `jobs` run, too."""

import sys


def main() -> int:
    """Run the command line, and return its exit status: 130 also for Ctrl-C while its modules are imported."""
    try:
        from mnist_ray.cli import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
