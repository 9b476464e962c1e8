"""Lists files: all below a folder, or those that are named. Results are streamed because there may be millions."""

import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import NamedTuple, TypeVar

from pyarrow import fs

from mnist_ray.data.storage import absolute, is_local, resolve
from mnist_ray.errors import StorageError

REMOTE_LISTERS = 16
"""Folders of an object store that are listed at once. A page of 1,000 names takes 50 to 100 ms."""

T = TypeVar("T")


class FileEntry(NamedTuple):
    """A listed file: its path or URI, its size in bytes (-1 if unknown) and its version (the time of its last change)."""

    uri: str
    size: int
    version: str


class ImageFile(NamedTuple):
    """An image file to score, and its true digit if a folder name or a manifest states it."""

    entry: FileEntry
    truth: int | None


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Items in lists of `size`; the last list may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def stat_files(uris: Iterable[str]) -> Iterator[FileEntry]:
    """The entry of each of these files, in order. A file that cannot be looked up has size -1 and an empty version."""
    for batch in batches(uris, 1024):
        if all(map(is_local, batch)):
            yield from (_stat_local(uri, absolute(uri)) for uri in batch)
        else:
            with ThreadPoolExecutor(REMOTE_LISTERS) as pool:
                yield from pool.map(lambda uri: _stat_local(uri, absolute(uri)) if is_local(uri) else _stat_remote(uri), batch)


def _stat_local(uri: str, path: str) -> FileEntry:
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        return FileEntry(uri, -1, "")
    return FileEntry(uri, info.st_size, str(info.st_mtime_ns)) if stat.S_ISREG(info.st_mode) else FileEntry(uri, -1, "")


def _stat_remote(uri: str) -> FileEntry:
    filesystem, path = resolve(uri)
    with suppress(OSError, ValueError):
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.File:
            return FileEntry(uri, info.size, str(info.mtime_ns))
    return FileEntry(uri, -1, "")


def _walk_local(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[FileEntry]:
    place = os.stat(folder)
    if (place.st_dev, place.st_ino) in above:  # a link to a folder that contains this one
        return
    above |= {(place.st_dev, place.st_ino)}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _walk_local(entry.path, above)
        else:  # broken links, pipes and sockets are listed too, so that the table accounts for them
            yield _stat_local(entry.path, entry.path)


def _walk_remote(scheme: str, filesystem: fs.FileSystem, root: str) -> Iterator[FileEntry]:
    """Yield the files of a folder by name, then those of its folders. Up to `REMOTE_LISTERS` folders are listed ahead."""
    with ThreadPoolExecutor(REMOTE_LISTERS) as pool:

        def below(folder: list[fs.FileInfo]) -> Iterator[FileEntry]:
            inner = []
            for info in sorted(folder, key=lambda info: info.path):
                if info.type == fs.FileType.File:
                    yield FileEntry(f"{scheme}://{info.path.lstrip('/')}", info.size, str(info.mtime_ns))
                elif info.type == fs.FileType.Directory:
                    inner.append(info.path)
            ahead: deque[Future[list[fs.FileInfo]]] = deque()
            for path in inner:
                ahead.append(pool.submit(filesystem.get_file_info, fs.FileSelector(path)))
                if len(ahead) == REMOTE_LISTERS:
                    yield from below(ahead.popleft().result())
            while ahead:
                yield from below(ahead.popleft().result())

        yield from below(filesystem.get_file_info(fs.FileSelector(root)))


def walk(folder: str) -> Iterator[FileEntry]:
    """Every file below a folder, sorted by name within each folder.

    Symbolic links are followed, except to a folder that contains the link. Raises StorageError.
    """
    try:
        if is_local(folder):
            yield from _walk_local(absolute(folder), frozenset())
        else:
            yield from _walk_remote(folder.partition("://")[0], *resolve(folder))
    except OSError as error:
        raise StorageError(f"{folder}: cannot be listed: {error.strerror or error}") from None
