"""Reads the bytes of many files. A file that cannot be read does not affect the others."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from mnist_ray.data.patience import ANSWERS, patiently
from mnist_ray.data.storage import is_local, resolve

REMOTE_READERS = 32
"""Requests in flight. One round trip to an object store takes 10 to 100 ms."""
LOCAL_READERS = 16
"""Threads that read local files from a slow disk or a network mount."""
SLOW_S = 2e-4
"""Mean seconds per file above which the storage of local files counts as slow, and several files are read at once.

Files in the page cache take a tenth of that; one thread reads those fastest.
"""
TIMED_FILES = 32
"""Files that are read first, by one thread, to measure the speed of local storage."""


def _read_limited(uri: str, limit: int) -> bytes | OSError:
    store, path = resolve(uri)
    try:
        with suppress(OSError):  # the usual case, without the cost of `patiently`
            return store.read(path, limit + 1)
        return patiently(uri, "read", partial(store.read, path, limit + 1))
    except ANSWERS as error:
        return error


def read_many(uris: list[str], limit: int) -> Iterator[bytes | OSError]:
    """Yield the content of each file in the order of `uris`, or what the storage says about a file that it cannot give.

    That is one of `patience.ANSWERS`. At most `limit + 1` bytes of a file are read: a result longer than `limit` means that the
    file is larger. Raises StorageError if the storage fails.
    """
    readers = REMOTE_READERS
    if all(is_local(uri) for uri in uris):
        started = time.perf_counter()
        first = [_read_limited(uri, limit) for uri in uris[:TIMED_FILES]]
        slow = time.perf_counter() - started > SLOW_S * len(first)
        yield from first
        uris, readers = uris[TIMED_FILES:], LOCAL_READERS
        if not slow:
            yield from (_read_limited(uri, limit) for uri in uris)
            return
    with ThreadPoolExecutor(readers) as pool:
        yield from pool.map(lambda uri: _read_limited(uri, limit), uris)
