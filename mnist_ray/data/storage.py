"""Lists, reads, writes and deletes files at a path or URI. A write is atomic, and a fault of the storage is waited out.

A path without a scheme is local. `s3://`, `gs://`, `az://` and `abfs://` are served by obstore, other schemes by fsspec.
Credentials and endpoints come only from the standard environment variables of each storage.
"""

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, TypeVar

import pyarrow as pa
from fsspec.core import url_to_fs

from mnist_ray.data import local_store, object_store
from mnist_ray.data.fsspec_store import FsspecStore
from mnist_ray.data.local_store import LocalStore
from mnist_ray.data.object_store import ObjectStore
from mnist_ray.data.patience import ANSWERS, patiently
from mnist_ray.data.store import REQUEST_BYTES, Check, Found, Reader, Store
from mnist_ray.errors import StorageError, first_line

T = TypeVar("T")

_LOCAL = LocalStore()

_fences: list[tuple[str, Check]] = []
"""Folders that this process may change only as long as a check passes."""


def is_local(uri: str) -> bool:
    """Whether a path or URI is on the local filesystem."""
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str) -> str:
    """A local path as an absolute path; a URI without its trailing slash."""
    return os.path.abspath(uri.removeprefix("file://")) if is_local(uri) else uri.rstrip("/")


def join(uri: str, *names: str) -> str:
    """The path or URI of `names` below `uri`."""
    return "/".join([uri.rstrip("/"), *names])


def to_text(uri: str) -> str:
    """A path or URI as valid UTF-8 for tables. Bytes of a file name that are not UTF-8 become backslash escapes."""
    return uri.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def from_text(text: str) -> str:
    """The path or URI from which `to_text` made `text`. If a file has the name `text` itself, this is `text`.

    Only bytes from 80 on are no UTF-8, so other escapes are a part of the name.
    """
    if "\\x" not in text or not is_local(text) or os.path.lexists(text):
        return text
    raw = re.sub(rb"\\x([89a-f][0-9a-f])", lambda found: bytes.fromhex(found[1].decode()), text.encode())
    return os.fsdecode(raw)


@lru_cache(maxsize=64)
def _open_store(root: str) -> tuple[Store, Callable[[str], str]]:
    """The store of a URI's scheme and host, and the function from a URI to the path in this store."""
    try:
        if root.partition("://")[0] in object_store.SCHEMES:
            return ObjectStore(root), lambda uri: uri[len(root) :].strip("/")
        filesystem, _ = url_to_fs(f"{root}/")
        return FsspecStore(filesystem), filesystem._strip_protocol
    except Exception as error:  # each library has errors of its own
        raise StorageError(f"{root}: cannot reach this storage: {first_line(error)}") from None


def forget_stores() -> None:
    """Let the next access to each storage read the environment again, where a user may have set other credentials since."""
    _open_store.cache_clear()


def resolve(uri: str) -> tuple[Store, str]:
    """The store of a path or URI and the path within it. Keys are not percent-decoded. Raises StorageError."""
    if is_local(uri):
        return _LOCAL, uri.removeprefix("file://")
    scheme, _, rest = uri.partition("://")
    store, to_path = _open_store(f"{scheme}://{rest.partition('/')[0]}")
    return store, to_path(uri)


def _ask(uri: str, verb: str, action: Callable[[Store, str], T], patience_s: float | None = None) -> T:
    """The result of an action on the store and path of a URI. Raises FileNotFoundError, or StorageError for all else."""
    store, path = resolve(uri)
    return _strictly(uri, verb, partial(action, store, path), patience_s)


def _strictly(uri: str, verb: str, action: Callable[[], T], patience_s: float | None = None) -> T:
    """Like `patiently` for a file of ours: of the storage's answers, only that there is no such file is expected."""
    try:
        return patiently(uri, verb, action, patience_s)
    except (FileNotFoundError, NotADirectoryError):  # the second: below a file, where nothing can be
        raise FileNotFoundError(f"{uri}: there is no such file") from None
    except ANSWERS as error:
        raise StorageError(f"{uri}: cannot be {verb}: {error.strerror or error}") from None


def find(uri: str) -> Found | None:
    """The size and the version of a file; None if there is no such file. Raises StorageError."""
    return _ask(uri, "looked up", lambda store, path: store.find(path))


def is_file(uri: str) -> bool:
    """Whether this is an existing file, not a folder. Raises StorageError."""
    return find(uri) is not None


def is_folder(uri: str) -> bool:
    """Whether this is an existing folder; in an object store, whether any key starts with it. Raises StorageError."""
    return _ask(uri, "looked up", lambda store, path: store.is_folder(path))


def names(folder: str) -> list[str]:
    """The sorted names of the files and folders directly in a folder; empty if there is no such folder. Raises StorageError."""
    return _ask(folder, "listed", lambda store, path: store.names(path))


def read(uri: str, patience_s: float | None = None) -> bytes:
    """The content of a file. Raises FileNotFoundError, or StorageError for any other failure."""
    return _ask(uri, "read", lambda store, path: store.read(path, sys.maxsize), patience_s)


class _File(io.RawIOBase):
    """A file whose every read is tried again after a fault, by `ask`. Raises StorageError if the storage does not recover."""

    def __init__(self, uri: str, reader: Reader, ask: Callable[[str, str, Callable[[], bytes]], bytes]) -> None:
        self._uri, self._reader, self._ask, self._position = uri, reader, ask, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._reader.size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(self._reader.size - self._position, 0)
        left = left if size < 0 else min(left, size)
        pieces = []
        while left > 0:
            read = partial(self._reader.read_at, self._position, min(left, REQUEST_BYTES))
            if not (data := self._ask(self._uri, "read", read)):
                break  # the file has become shorter
            pieces.append(data)
            self._position += len(data)
            left -= len(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._reader.close()
        super().close()


def open_file(uri: str) -> pa.NativeFile:
    """Open a seekable file of ours for Parquet readers. Raises FileNotFoundError or StorageError; its reads, StorageError."""
    return pa.PythonFile(_File(uri, _ask(uri, "read", lambda store, path: store.open(path)), _strictly), mode="r")


def open_input(uri: str) -> pa.NativeFile:
    """Like `open_file` for a file of the user. Raises one of `patience.ANSWERS` for what is wrong with this file alone."""
    return pa.PythonFile(_input(uri), mode="r")


def open_lines(uri: str) -> io.BufferedReader:
    """Open a file of the user to read lines of it. Raises the errors of `open_input`; so do its reads."""
    return io.BufferedReader(_input(uri), 1 << 20)


def _input(uri: str) -> _File:
    store, path = resolve(uri)
    return _File(uri, patiently(uri, "read", lambda: store.open(path)), patiently)


def open_stream(uri: str) -> io.BufferedReader:
    """Open a file to read it once from its start. Raises FileNotFoundError or StorageError; so do its reads."""
    return io.BufferedReader(_File(uri, _ask(uri, "read", lambda store, path: store.open(path)), _strictly), 1 << 20)


@contextmanager
def fenced(folder: str, check: Check) -> Iterator[None]:
    """Inside this block, `check` is called at the last moment before this process changes or deletes a file below a folder.

    An error that it raises leaves the file as it is.
    """
    fence = (folder, check)
    _fences.append(fence)
    try:
        yield
    finally:
        _fences.remove(fence)


def _check(uri: str) -> None:
    """Call the checks of the folders that hold a file."""
    for folder, check in tuple(_fences):  # another thread may add one
        if uri.startswith(f"{folder}/"):
            check()


def write(uri: str, data: bytes, patience_s: float | None = None) -> None:
    """Write a file atomically: readers see the old content or the new content, never a part of it. Raises StorageError."""
    _written(uri, lambda store, path: store.write(path, data, partial(_check, uri)), patience_s)


def create(uri: str, data: bytes) -> bool:
    """Write a file only if there is none yet; returns whether it was written. Raises StorageError."""
    return _written(uri, lambda store, path: store.create(path, data))


def _written(uri: str, action: Callable[[Store, str], T], patience_s: float | None = None) -> T:
    try:
        return _ask(uri, "written", action, patience_s)
    except FileNotFoundError:
        raise StorageError(f"{uri}: cannot be written: its folder is gone, or cannot be made") from None


def write_json(uri: str, value: Any) -> None:
    """Write a value as indented JSON. Atomicity and errors are those of `write`."""
    write(uri, to_json(value))


def to_json(value: Any) -> bytes:
    """A value as indented JSON in UTF-8. Bytes of a file name that are not UTF-8 become JSON's escapes of a surrogate."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def read_json(uri: str, patience_s: float | None = None) -> Any:
    """The value in a JSON file. Raises FileNotFoundError, StorageError, or ValueError for damaged JSON."""
    return json.loads(read(uri, patience_s))


def delete_scratch(folder: str, sign: str) -> None:
    """Delete the files that killed processes have left below a folder, but not in folders inside that hold a file `sign`.

    Raises StorageError.
    """
    if is_local(folder):
        _strictly(folder, "tidied", partial(local_store.delete_scratch, folder.removeprefix("file://"), sign))


def delete(uri: str, patience_s: float | None = None) -> None:
    """Delete a file, or a folder with everything in it. Does nothing if it does not exist. Raises StorageError."""
    _ask(uri, "deleted", lambda store, path: store.delete(path, partial(_check, uri)), patience_s)
