"""A lean PyTorch, for processes that belong to this program alone."""

import sys
from types import ModuleType

_META_KERNELS = "torch._meta_registrations"


def leave_compiler_out() -> None:
    """Let PyTorch be imported without its meta kernels, if this process has not imported it yet.

    They compute the shapes of tensors without data. Only PyTorch's compiler needs them, and they take a third of its import, a
    second. Not for a process of somebody else, who may use the compiler.
    """
    if "torch" not in sys.modules:
        sys.modules.setdefault(_META_KERNELS, ModuleType(_META_KERNELS))
