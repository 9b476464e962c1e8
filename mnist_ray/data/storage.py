"""Files at a path or URI: list, read, and write whole or not at all.

A path without a scheme is local. `s3://`, `gs://` and other schemes go through `pyarrow.fs`, and what pyarrow does not
know through fsspec; credentials and endpoints come from the environment's standard variables only.
"""

from __future__ import annotations

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
    """Whether a path or URI names a file of this machine."""
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str) -> str:
    """A local path without its dependence on the working directory; a URI as it is, less a trailing slash."""
    return os.path.abspath(uri.removeprefix("file://")) if is_local(uri) else uri.rstrip("/")


def join(uri: str, *names: str) -> str:
    """The path or URI of something below `uri`."""
    return "/".join([uri.rstrip("/"), *names])


def to_text(uri: str) -> str:
    """A path or URI as valid UTF-8 for tables: bytes of a file name that are not UTF-8 become backslash escapes."""
    return uri.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def from_text(text: str) -> str:
    """The path that `to_text` was given, as far as such a file exists."""
    if "\\x" not in text or not is_local(text) or os.path.lexists(text):
        return text
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), text.encode())
    return os.fsdecode(raw)


@lru_cache(maxsize=64)
def _filesystem(root: str) -> tuple[fs.FileSystem, str]:
    try:
        return fs.FileSystem.from_uri(root)  # type: ignore[no-any-return]
    except pa.ArrowInvalid:
        from fsspec.core import url_to_fs

        filesystem, path = url_to_fs(root)
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or URI and the path inside it; keys are taken as they are, never percent-decoded."""
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
    except (OSError, ValueError) as error:  # ValueError: a key that pyarrow holds to be malformed
        raise StorageError(f"{uri}: cannot be looked up: {error}") from None


def is_file(uri: str) -> bool:
    """Whether a file (not a folder) is there."""
    return os.path.isfile(absolute(uri)) if is_local(uri) else bool(_kind(uri) == fs.FileType.File)


def is_folder(uri: str) -> bool:
    """Whether a folder is there, or in an object store any key below this one."""
    return os.path.isdir(absolute(uri)) if is_local(uri) else bool(_kind(uri) == fs.FileType.Directory)


def names(folder: str) -> list[str]:
    """The names directly in a folder, sorted; none if there is no such folder."""
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
    """The whole file. Raises FileNotFoundError, or StorageError for any other failure."""
    try:
        if is_local(uri):
            with open(absolute(uri), "rb") as file:
                return file.read()
        filesystem, path = resolve(uri)
        with filesystem.open_input_stream(path, compression=None) as stream:
            return stream.read()  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise FileNotFoundError(f"{uri}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{uri}: cannot be read: {error}") from None


def open_file(uri: str) -> pa.NativeFile:
    """A seekable file for Parquet to read from. Raises OSError."""
    if is_local(uri):
        return pa.OSFile(os.fsencode(absolute(uri)))
    filesystem, path = resolve(uri)
    return filesystem.open_input_file(path)


def open_stream(uri: str) -> pa.NativeFile:
    """A file to read from its beginning on. Raises StorageError."""
    filesystem, path = resolve(uri)
    try:
        return filesystem.open_input_stream(path, compression=None)
    except (OSError, ValueError) as error:
        raise StorageError(f"{uri}: cannot be read: {error}") from None


PATIENT = (1.0, 2.0, 4.0)
"""Seconds to wait before writing again what must not be lost."""


def write(uri: str, data: bytes, waits: tuple[float, ...] = ()) -> None:
    """Put a whole file in place: readers see the old one or the new one, never a part.

    A failed write is tried again after each of `waits` seconds. Raises StorageError.
    """
    filesystem, path = resolve(uri)
    try:
        if is_local(uri):
            _write_local(path, data)
        else:
            with filesystem.open_output_stream(path) as stream:  # an object appears when its upload completes
                stream.write(data)
    except OSError as error:
        if not waits:
            raise StorageError(f"{uri}: cannot be written: {error}") from None
        time.sleep(waits[0])
        write(uri, data, waits[1:])


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
    """Write a value as indented JSON, whole or not at all; `waits` as in `write`."""
    write(uri, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), waits)


def read_json(uri: str) -> Any:
    """The value of a JSON file. Raises FileNotFoundError, StorageError, or ValueError for damaged JSON."""
    return json.loads(read(uri))


def delete(uri: str) -> None:
    """Remove a file or a whole folder, if it is there. Raises StorageError."""
    filesystem, path = resolve(uri)
    kind = _kind(uri)
    try:
        if kind == fs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind != fs.FileType.NotFound:
            filesystem.delete_file(path)
    except OSError as error:
        raise StorageError(f"{uri}: cannot be deleted: {error}") from None
