"""What scoring processes inherit. Only the process that they are forked from imports this."""

import gc
import sys
import warnings
from types import ModuleType
from typing import Any

import pyarrow as pa

from mnist_ray.run import processes  # noqa: F401
from mnist_ray.run.lean import leave_compiler_out


def _leave_pandas_out() -> None:
    """Keep pyarrow from importing pandas with the first array, for half a second: tell it that pandas is too old for it."""
    stand_in: Any = ModuleType("pandas")
    stand_in.__version__ = "0"
    sys.modules["pandas"] = stand_in
    with warnings.catch_warnings(action="ignore"):
        pa.array([])
    del sys.modules["pandas"]


_leave_pandas_out()
leave_compiler_out()
import mnist_ray.artifact.predictor  # noqa: E402, F401

gc.freeze()  # a process that looks for garbage in the modules would make its own copy of their memory
