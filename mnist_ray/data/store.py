"""What every kind of storage can do: local files, object stores and the file systems of fsspec."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

REQUEST_BYTES = 8 << 20
"""Most bytes of one request, so that a slow connection is not taken for a dead one."""


Check = Callable[[], None]
"""Called at the last moment before a file is changed. Raises an error to leave it as it is."""


def unchecked() -> None:
    """The check of a file that anyone may change."""


class Found(NamedTuple):
    """A file in a listing: its path below the listed folder, its size in bytes (-1 if unknown) and its version."""

    path: str
    size: int
    version: str


class Reader(Protocol):
    """An open file."""

    size: int

    def read_at(self, start: int, length: int) -> bytes:
        """At most `length` bytes from `start` on."""

    def close(self) -> None:
        """Close the file."""


class Store(Protocol):
    """One storage. Its paths have no scheme and no host.

    The methods raise one of `patience.ANSWERS` for what the storage says about a file, StorageError for what will not
    change, and another OSError for a fault of the storage. `walk` tries again by itself. Callers of the other methods
    use `patiently`.
    """

    def read(self, path: str, limit: int) -> bytes:
        """The first `limit` bytes of a file."""

    def open(self, path: str) -> Reader:
        """Open a file for reading at any position."""

    def find(self, path: str) -> Found | None:
        """The size and the version of a file; None if there is no such file."""

    def walk(self, path: str) -> Iterator[Found]:
        """All files below a folder. Raises StorageError if the storage fails."""

    def names(self, path: str) -> list[str]:
        """The names of the files and folders directly in a folder; empty if there is no such folder."""

    def is_folder(self, path: str) -> bool:
        """Whether there is such a folder; in an object store, whether any key lies below it."""

    def write(self, path: str, data: bytes, check: Check = unchecked) -> None:
        """Write a file. Readers see the old content or the new content, never a part of it."""

    def create(self, path: str, data: bytes) -> bool:
        """Write a file only if there is none yet; returns whether it was written."""

    def delete(self, path: str, check: Check = unchecked) -> None:
        """Delete a file, or a folder with everything in it. Does nothing if it does not exist."""
