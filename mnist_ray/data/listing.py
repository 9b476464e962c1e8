"""Lists files: all below a folder, or those that are named. Results are streamed because there may be millions."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from mnist_ray.data.patience import ANSWERS, NotAFileError, patiently
from mnist_ray.data.storage import absolute, is_local, resolve
from mnist_ray.errors import DataError, StorageError

REMOTE_READERS = 32
"""Files of an object store that are looked up at once. A round trip takes 10 to 100 ms."""

T = TypeVar("T")


class FileEntry(NamedTuple):
    """A listed file: its path or URI, its size in bytes (-1 if unknown) and its version.

    The version is the time of the last change of a local file, the ETag of an object, and empty if there is neither. For a file
    of a manifest that is not there, it is the other place at which the file was looked for.
    """

    uri: str
    size: int
    version: str


class ImageFile(NamedTuple):
    """An image file to score, and its true digit if a folder name or a manifest states it."""

    entry: FileEntry
    truth: int | None
    kept: tuple[Any, ...] = ()
    """What a manifest says in the columns that `--keep` names; empty if it has no such columns."""


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Items in lists of `size`; the last list may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def stat_files(uris: Iterable[str]) -> Iterator[FileEntry]:
    """The entry of each of these files, in order. Raises StorageError."""
    for batch in batches(uris, 1024):
        if all(map(is_local, batch)):
            yield from map(stat_file, batch)
        else:
            with ThreadPoolExecutor(REMOTE_READERS) as pool:
                yield from pool.map(stat_file, batch)


def stat_file(uri: str) -> FileEntry:
    """The entry of a file. One that is not there has size -1 and an empty version. Raises StorageError."""
    store, path = resolve(uri)
    try:
        found = patiently(uri, "looked up", lambda: store.find(path))
    except ANSWERS:  # reading it will say what is wrong
        found = None
    return FileEntry(uri, found.size, found.version) if found else FileEntry(uri, -1, "")


def walk(folder: str) -> Iterator[FileEntry]:
    """Every file below a folder, in a fixed order.

    Symbolic links are followed, except to a folder that contains the link. Raises StorageError, and DataError for a key that
    cannot be addressed.
    """
    store, path = resolve(folder)
    folder = absolute(folder) if is_local(folder) else folder.rstrip("/")
    try:
        for found in store.walk(path):
            yield FileEntry(f"{folder}/{found.path}", found.size, found.version)
    except NotAFileError as error:
        raise DataError(f"{folder}: cannot be listed: {error}") from None
    except OSError as error:
        raise StorageError(f"{error.filename or folder}: cannot be listed: {error.strerror or error}") from None
