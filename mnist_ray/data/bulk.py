"""Reads the bytes of many files. A file that cannot be read does not affect the others."""

import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice

from mnist_ray.data.local_store import OPEN
from mnist_ray.data.patience import ANSWERS, patiently
from mnist_ray.data.storage import is_local, resolve
from mnist_ray.errors import StorageError

REMOTE_READERS = 32
"""Requests in flight. One round trip to an object store takes 10 to 100 ms."""
LOCAL_READERS = 16
"""Threads that read local files from a slow disk or a network mount."""
AHEAD_BYTES = 64 << 20
"""Most bytes of files that threads read, or have read, before they are asked for. One file may be larger."""
USUAL_BYTES = 1 << 20
"""A file of unknown size is read up to here ahead of time, and the whole of a larger one when it is asked for."""
SLOW_S = 2e-4
"""Mean seconds per file above which the storage of local files counts as slow, and several files are read at once.

Files in the page cache take a tenth of that; one thread reads those fastest.
"""
TIMED_FILES = 32
"""Files that are read first, by one thread, to measure the speed of local storage."""


def _read_limited(uri: str, limit: int) -> bytes | OSError:
    store, path = resolve(uri)
    try:
        return store.read(path, limit + 1)
    except (OSError, StorageError):
        pass  # `patiently` costs time, so only a file that has failed goes through it
    try:
        return patiently(uri, "read", partial(store.read, path, limit + 1))
    except ANSWERS as error:
        return error


def _read_expected(path: str, size: int, limit: int) -> bytes:
    """The content of a small local file of this size, with few system calls; empty if anything is not as expected."""
    if not 0 < size <= min(limit, USUAL_BYTES):
        return b""
    try:
        handle = os.open(path, OPEN)
        try:
            data = os.read(handle, size + 1)
        finally:
            os.close(handle)
    except (OSError, ValueError):
        return b""
    return data if len(data) == size else b""


def read_many(uris: list[str], limit: int, sizes: list[int] | None = None) -> Iterator[bytes | OSError]:
    """Yield the content of each file in the order of `uris`, or what the storage says about a file that it cannot give.

    That is one of `patience.ANSWERS`. At most `limit + 1` bytes of a file are read: a result longer than `limit` means that the
    file is larger. `sizes` are the expected sizes, -1 if unknown. Raises StorageError if the storage fails.
    """
    files = zip(uris, sizes or [-1] * len(uris), strict=True)
    readers = REMOTE_READERS
    if all(is_local(uri) for uri in uris):
        read_s = 0.0
        for uri, _ in islice(files, TIMED_FILES):
            started = time.perf_counter()
            data = _read_limited(uri, limit)
            read_s += time.perf_counter() - started
            yield data
        readers = LOCAL_READERS
        if read_s <= SLOW_S * min(len(uris), TIMED_FILES):
            for uri, size in files:
                yield _read_expected(uri, size, limit) or _read_limited(uri, limit)
            return
    yield from _read_ahead(files, limit, readers)


def _read_ahead(files: Iterator[tuple[str, int]], limit: int, readers: int) -> Iterator[bytes | OSError]:
    """`read_many` with threads, for files with their expected sizes."""
    left = deque((uri, min(USUAL_BYTES if size < 0 else size, limit)) for uri, size in files)
    ahead: deque[tuple[str, int, Future[bytes | OSError]]] = deque()
    num_bytes = 0
    pool = ThreadPoolExecutor(readers)
    try:
        while left or ahead:
            while left and (not ahead or num_bytes + left[0][1] <= AHEAD_BYTES):
                uri, size = left.popleft()
                ahead.append((uri, size, pool.submit(_read_limited, uri, size)))
                num_bytes += size
            uri, size, future = ahead.popleft()
            num_bytes -= size
            data = future.result()
            yield _read_limited(uri, limit) if isinstance(data, bytes) and size < len(data) <= limit else data
    finally:
        pool.shutdown(cancel_futures=True)
