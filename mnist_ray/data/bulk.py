"""Many files' bytes, each with its own failure."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from mnist_ray.data.storage import is_local, resolve
from mnist_ray.errors import StorageError

REMOTE_READERS = 32
"""Requests in flight: one round trip to an object store takes 10 to 100 ms."""


LOCAL_READERS = 16
SLOW_S = 2e-4
"""Mean seconds a file above which local files come from a disk or over a network, and several are read at once.

Those in memory take a tenth of that, and one thread reads them fastest.
"""
FIRST = 32
"""Files that are timed to tell."""


def _read_limited(uri: str, limit: int) -> bytes | OSError:
    try:
        if is_local(uri):
            return _read_local(uri, limit)
        filesystem, path = resolve(uri)
        with filesystem.open_input_stream(path, compression=None) as stream:
            return stream.read(limit + 1)  # type: ignore[no-any-return]
    except (OSError, ValueError, StorageError) as error:
        return error if isinstance(error, OSError) else OSError(str(error))


def _read_local(uri: str, limit: int) -> bytes:
    # O_NONBLOCK: opening a FIFO without a writer would wait for ever.
    handle = os.open(uri.removeprefix("file://"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise OSError("not a regular file")
        data = os.read(handle, min(info.st_size, limit) + 1)
        if len(data) != info.st_size:  # as large as it was said to be: a read that stops short has met the end
            while len(data) <= limit and (more := os.read(handle, limit + 1 - len(data))):
                data += more
        return data
    finally:
        os.close(handle)


def read_many(uris: list[str], limit: int) -> Iterator[bytes | OSError]:
    """Each file's bytes, at most `limit + 1` of them, or why it cannot be read; in the given order."""
    readers = REMOTE_READERS
    if all(is_local(uri) for uri in uris):
        started = time.perf_counter()
        first = [_read_limited(uri, limit) for uri in uris[:FIRST]]
        slow = time.perf_counter() - started > SLOW_S * len(first)
        yield from first
        uris, readers = uris[FIRST:], LOCAL_READERS
        if not slow:
            yield from (_read_limited(uri, limit) for uri in uris)
            return
    with ThreadPoolExecutor(readers) as pool:
        yield from pool.map(lambda uri: _read_limited(uri, limit), uris)
