"""Lean processes: PyTorch without what a job does not use, and few objects for the garbage collector."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_META_KERNELS = "torch._meta_registrations"


def leave_compiler_out() -> None:
    """Let PyTorch be imported without its meta kernels, if this process has not imported it yet.

    They compute the shapes of tensors without data. Only PyTorch's compiler needs them, and they take a third of its import, a
    second. Not for a process of somebody else, who may use the compiler.
    """
    if "torch" not in sys.modules:
        sys.modules.setdefault(_META_KERNELS, ModuleType(_META_KERNELS))


@contextmanager
def few_objects_to_collect() -> Iterator[None]:
    """Keep the garbage collector from scanning all imported modules again and again, which takes up to 0.3 s each time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
