"""Tells answers of a storage from its faults, and tries again after a fault."""

import errno
import logging
import math
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from mnist_ray.errors import StorageError, first_line

PATIENCE_S = float(os.environ.get("MNIST_RAY_STORAGE_PATIENCE_S", "45"))
"""Seconds for which a storage may fail before the job stops. No operation lasts much longer than this and one request."""
FULL_S = 10.0
"""The same for a full disk, which seldom gets room by itself."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
"""Pauses before the next try. Each is twice as long as the one before, less a random part."""


class NotAFileError(OSError):
    """The path cannot be read as a file or folder, for example because it is a pipe or no valid key."""


ANSWERS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError, NotAFileError)
"""Errors that say something about a file. Any other OSError is a fault of the storage."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

T = TypeVar("T")

_failing: dict[str, tuple[float, float]] = {}
"""The first and the last failure of each storage that has not answered since."""
_warned: dict[str, float] = {}
"""When each storage was last warned of."""


def patiently(uri: str, verb: str, action: Callable[[], T], patience_s: float | None = None) -> T:
    """The result of an action on storage. After a fault it is tried again, with growing pauses, for `patience_s` seconds.

    The time counts from the first failure of this storage in this process. So a storage that is gone ends a job soon, although
    many files fail. `verb` says what is done to the file, for messages.

    Raises one of `ANSWERS`, or StorageError if the storage does not recover.
    """
    scheme, _, rest = uri.rpartition("://")
    root = f"{scheme}://{rest.partition('/')[0]}" if scheme else "local files"
    started, pause = time.monotonic(), FIRST_PAUSE_S
    while True:
        try:
            result = action()
        except ANSWERS:
            _failing.pop(root, None)
            raise
        except StorageError as error:  # it may name a file already
            raise error if ": cannot be " in str(error) else StorageError(f"{uri}: cannot be {verb}: {error}") from None
        except OSError as error:
            now = time.monotonic()
            patience = min(PATIENCE_S, FULL_S) if error.errno in _FULL else PATIENCE_S
            patience = patience if patience_s is None else patience_s
            if now + pause - min(started, _since(root, now, error)) > patience:
                if patience == PATIENCE_S:
                    _failing[root] = (now - patience, now)  # the next action is tried once
                raise StorageError(f"{uri}: cannot be {verb}: {_why(error)}; tried for {now - started:.0f} s") from None
        else:
            _failing.pop(root, None)
            return result
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _since(root: str, now: float, error: OSError) -> float:
    """The time of the first failure of a storage that fails now."""
    first, last = _failing.get(root, (now, now))
    if now - last > PATIENCE_S:  # an old failure that nothing followed
        first = now
    if now - _warned.get(root, -math.inf) > PATIENCE_S > 0:
        _warned[root] = now
        logging.getLogger(__name__).warning("warning: %s: %s; trying again for up to %.0f s", root, _why(error), PATIENCE_S)
    _failing[root] = (first, now)
    return first


def _why(error: OSError) -> str:
    return error.strerror or first_line(error)
