"""Reads the bytes of many files. A file that cannot be read does not affect the others."""

import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from mnist_ray.data.storage import is_local, resolve
from mnist_ray.errors import StorageError

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
    try:
        if is_local(uri):
            return _read_local(uri, limit)
        filesystem, path = resolve(uri)
        with filesystem.open_input_stream(path, compression=None) as stream:
            return stream.read(limit + 1)  # type: ignore[no-any-return]
    except (OSError, ValueError, StorageError) as error:
        return error if isinstance(error, OSError) else OSError(str(error))


def _read_local(uri: str, limit: int) -> bytes:
    # Without O_NONBLOCK, opening a FIFO that has no writer would block forever.
    handle = os.open(uri.removeprefix("file://"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise OSError("not a regular file")
        data = os.read(handle, min(info.st_size, limit) + 1)
        # If the size is as expected, the file has been read to its end. This saves one system call per file.
        if len(data) != info.st_size:
            while len(data) <= limit and (more := os.read(handle, limit + 1 - len(data))):
                data += more
        return data
    finally:
        os.close(handle)


def read_many(uris: list[str], limit: int) -> Iterator[bytes | OSError]:
    """Yield the content of each file, or the OSError that prevents reading it, in the order of `uris`.

    At most `limit + 1` bytes of a file are read: a result longer than `limit` means that the file is larger.
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
