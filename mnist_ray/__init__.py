"""Distributed training and batch scoring of handwritten digits on Ray.

`train`, `score`, `load_model` and `read_table` are the library; docs/reference/library.md shows them. They are imported when
they are first used, so that `import mnist_ray` itself takes no time.
"""

__version__ = "0.1.0.dev0"
__all__ = ["__version__", "load_model", "read_table", "score", "train"]

TYPE_CHECKING = False
"""What type checkers read as True. `typing` itself is not imported: Ctrl-C during that import would print a stack trace."""

if TYPE_CHECKING:
    from mnist_ray.library import load_model, read_table, score, train
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from mnist_ray import library

        return getattr(library, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
