"""What files there are: below a folder, or among those named."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from pyarrow import fs

from mnist_ray.data.storage import absolute, is_local, resolve
from mnist_ray.errors import StorageError


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One listed file: its path or URI, its size in bytes (-1 unknown) and what tells one version from the next."""

    uri: str
    size: int
    version: str


def _uri(like: str, path: str) -> str:
    return path if is_local(like) else f"{like.partition('://')[0]}://{path.lstrip('/')}"


def stat_files(uris: Iterable[str]) -> list[FileEntry]:
    """Size and version of each of these files; size -1 where there is none."""
    return [_stat_local(uri) if is_local(uri) else _stat_remote(uri) for uri in uris]


def _stat_local(uri: str) -> FileEntry:
    with suppress(OSError):
        info = os.stat(absolute(uri))
        if stat.S_ISREG(info.st_mode):
            return FileEntry(uri, info.st_size, str(info.st_mtime_ns))
    return FileEntry(uri, -1, "")


def _stat_remote(uri: str) -> FileEntry:
    filesystem, path = resolve(uri)
    with suppress(OSError, ValueError):
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.File:
            return FileEntry(uri, info.size, str(info.mtime_ns))
    return FileEntry(uri, -1, "")


def _walk_local(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[FileEntry]:
    place = os.stat(folder)
    if (place.st_dev, place.st_ino) in above:  # a link back to a folder that this one lies in
        return
    above |= {(place.st_dev, place.st_ino)}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk_local(entry.path, above)
            elif entry.is_file():
                info = entry.stat()
                yield FileEntry(entry.path, info.st_size, str(info.st_mtime_ns))
            else:  # a dangling link, a pipe, a socket: whoever scores the folder must hear of it
                yield FileEntry(entry.path, -1, "")


def walk(folder: str) -> Iterator[FileEntry]:
    """Every file below a folder, in no order; links are followed, loops are not. Raises StorageError."""
    try:
        if is_local(folder):
            yield from _walk_local(absolute(folder), frozenset())
            return
        filesystem, path = resolve(folder)
        for info in filesystem.get_file_info(fs.FileSelector(path, recursive=True)):
            if info.type == fs.FileType.File:
                yield FileEntry(_uri(folder, info.path), info.size, str(info.mtime_ns))
    except OSError as error:
        raise StorageError(f"{folder}: cannot be listed: {error.strerror or error}") from None
