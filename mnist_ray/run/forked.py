"""Imported last by the process that scoring processes are forked from, and by no other: it prepares what they inherit."""

import gc
import sys
import warnings
from types import ModuleType
from typing import Any

import pyarrow as pa


def _leave_pandas_out() -> None:
    """Keep pyarrow from importing pandas with the first array, for half a second: tell it that pandas is too old for it."""
    stand_in: Any = ModuleType("pandas")
    stand_in.__version__ = "0"
    sys.modules["pandas"] = stand_in
    with warnings.catch_warnings(action="ignore"):
        pa.array([])
    del sys.modules["pandas"]


_leave_pandas_out()
gc.freeze()  # a process that looks for garbage in the modules would make its own copy of their memory
