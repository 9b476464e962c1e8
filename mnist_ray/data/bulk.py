"""Many files' bytes, each with its own failure."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from mnist_ray.data.storage import absolute, is_local, resolve
from mnist_ray.errors import StorageError

REMOTE_READERS = 32
"""Requests in flight: one round trip to an object store takes 10 to 100 ms."""


def _read_limited(uri: str, limit: int) -> bytes | OSError:
    try:
        if not is_local(uri):
            filesystem, path = resolve(uri)
            with filesystem.open_input_stream(path, compression=None) as stream:
                return stream.read(limit + 1)  # type: ignore[no-any-return]
        # O_NONBLOCK: opening a FIFO without a writer would wait for ever.
        handle = os.open(absolute(uri), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode):
                return OSError("not a regular file")
            data = os.read(handle, min(info.st_size, limit) + 1)
            while len(data) <= limit and (more := os.read(handle, limit + 1 - len(data))):
                data += more
            return data
        finally:
            os.close(handle)
    except (OSError, ValueError, StorageError) as error:
        return error if isinstance(error, OSError) else OSError(str(error))


def read_many(uris: list[str], limit: int) -> Iterator[bytes | OSError]:
    """Each file's bytes, at most `limit + 1` of them, or why it cannot be read; in the given order."""
    if all(is_local(uri) for uri in uris):  # small local files: one thread reads fastest
        yield from (_read_limited(uri, limit) for uri in uris)
        return
    with ThreadPoolExecutor(REMOTE_READERS) as pool:
        yield from pool.map(lambda uri: _read_limited(uri, limit), uris)
