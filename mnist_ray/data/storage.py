"""Lists, reads, writes and deletes files at a path or URI. A write is atomic.

A path without a scheme is local. `s3://`, `gs://` and other schemes use `pyarrow.fs`, or fsspec if pyarrow does not support
the scheme. Credentials and endpoints come only from the standard environment variables of each storage.
"""

import json
import os
import re
import time
import uuid
from contextlib import suppress
from functools import lru_cache
from typing import Any

import pyarrow as pa
from pyarrow import fs

from mnist_ray.errors import StorageError


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
    """The path or URI from which `to_text` made `text`. If a file has the name `text` itself, this is `text`."""
    if "\\x" not in text or not is_local(text) or os.path.lexists(text):
        return text
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), text.encode())
    return os.fsdecode(raw)


@lru_cache(maxsize=64)
def _filesystem(root: str) -> tuple[fs.FileSystem, str]:
    try:
        return fs.FileSystem.from_uri(root)  # type: ignore[no-any-return]
    except pa.ArrowInvalid:
        return fs.FileSystem.from_uri(f"fsspec+{root}")  # type: ignore[no-any-return]


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or URI and the path within it. Keys are not percent-decoded. Raises StorageError."""
    if is_local(uri):
        return fs.LocalFileSystem(), absolute(uri)
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    try:
        filesystem, root = _filesystem(f"{scheme}://{bucket}")
    except (OSError, ValueError, ImportError) as error:
        raise StorageError(f"{uri}: cannot reach this storage: {error}") from None
    return filesystem, f"{root.rstrip('/')}/{key}" if key else root


def _kind(uri: str) -> fs.FileType:
    filesystem, path = resolve(uri)
    try:
        return filesystem.get_file_info(path).type
    except (OSError, ValueError) as error:  # pyarrow raises ValueError for a malformed key
        raise StorageError(f"{uri}: cannot be read: {error}") from None


def is_file(uri: str) -> bool:
    """Whether this is an existing file, not a folder. Raises StorageError."""
    return os.path.isfile(absolute(uri)) if is_local(uri) else bool(_kind(uri) == fs.FileType.File)


def is_folder(uri: str) -> bool:
    """Whether this is an existing folder; in an object store, whether any key starts with it. Raises StorageError."""
    return os.path.isdir(absolute(uri)) if is_local(uri) else bool(_kind(uri) == fs.FileType.Directory)


def names(folder: str) -> list[str]:
    """The sorted names of the files and folders directly in a folder; empty if there is no such folder. Raises StorageError."""
    try:
        if is_local(folder):
            return sorted(os.listdir(absolute(folder)))
        filesystem, path = resolve(folder)
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise StorageError(f"{folder}: is a file, expected a folder") from None
    except OSError as error:
        raise StorageError(f"{folder}: cannot be listed: {error}") from None
    return sorted(info.base_name for info in found)


def read(uri: str) -> bytes:
    """The content of a file. Raises FileNotFoundError, or StorageError for any other failure."""
    try:
        with open_file(uri) as stream:
            return stream.read()  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise FileNotFoundError(f"{uri}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{uri}: cannot be read: {error}") from None


def open_file(uri: str) -> pa.NativeFile:
    """Open a seekable file for Parquet readers. Raises OSError or StorageError."""
    if is_local(uri):
        return pa.OSFile(os.fsencode(absolute(uri)))
    filesystem, path = resolve(uri)
    return filesystem.open_input_file(path)


def open_stream(uri: str) -> pa.NativeFile:
    """Open a file to read it once from its start. Raises StorageError."""
    filesystem, path = resolve(uri)
    try:
        return filesystem.open_input_stream(path, compression=None)
    except (OSError, ValueError) as error:
        raise StorageError(f"{uri}: cannot be read: {error}") from None


PATIENT = (1.0, 2.0, 4.0)
"""Seconds to wait before each retry of a write that must not fail for a short outage."""


def write(uri: str, data: bytes, waits: tuple[float, ...] = ()) -> None:
    """Write a file atomically: readers see the old content or the new content, never a part of it.

    A failed write is retried after each of `waits` seconds. Raises StorageError if the last try fails.
    """
    filesystem, path = resolve(uri)
    for wait_s in (*waits, None):
        try:
            if is_local(uri):
                _write_local(path, data)
            else:
                with filesystem.open_output_stream(path) as stream:  # the object becomes visible when its upload completes
                    stream.write(data)
            return
        except OSError as error:
            if wait_s is None:
                raise StorageError(f"{uri}: cannot be written: {error}") from None
            time.sleep(wait_s)


def _write_local(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    scratch = os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}.tmp")
    try:
        with open(scratch, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(scratch, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(scratch)


def write_json(uri: str, value: Any, waits: tuple[float, ...] = ()) -> None:
    """Write a value as indented JSON. Atomicity, `waits` and errors are those of `write`."""
    write(uri, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), waits)


def read_json(uri: str) -> Any:
    """The value in a JSON file. Raises FileNotFoundError, StorageError, or ValueError for damaged JSON."""
    return json.loads(read(uri))


def delete(uri: str) -> None:
    """Delete a file, or a folder with everything in it. Does nothing if it does not exist. Raises StorageError."""
    filesystem, path = resolve(uri)
    kind = _kind(uri)
    try:
        if kind == fs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind != fs.FileType.NotFound:
            filesystem.delete_file(path)
    except OSError as error:
        raise StorageError(f"{uri}: cannot be deleted: {error}") from None
