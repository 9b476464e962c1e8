"""The command `mnist-ray`, which `python -m mnist_ray` and the programs in `jobs` run, too."""

import os
import signal


def _end(*_: object) -> None:
    """Print one line, and end this process with status 130."""
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(130)


# While modules are imported, Ctrl-C does not raise KeyboardInterrupt: Python and libraries turn it into other errors there.
if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)


def main() -> int:
    """Run the command line, and return its exit status."""
    from mnist_ray.cli import main as run

    return run()


if __name__ == "__main__":
    raise SystemExit(main())
