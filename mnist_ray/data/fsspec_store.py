"""The file systems of fsspec, by any scheme that it knows."""

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from mnist_ray.data.patience import NotAFileError, patiently
from mnist_ray.data.store import Check, Found, Reader, unchecked
from mnist_ray.errors import first_line


class FsspecStore:
    """A file system of fsspec. Its methods are documented in `Store`."""

    def __init__(self, filesystem: Any) -> None:
        self._fs = filesystem
        self._web = filesystem.protocol[0].startswith("http")

    def read(self, path: str, limit: int) -> bytes:
        with self._faults(), self._fs.open(path, "rb") as stream:
            return stream.read(limit)  # type: ignore[no-any-return]

    def open(self, path: str) -> Reader:
        with self._faults():
            if self._web:  # many servers only send whole files
                return _FsspecReader(io.BytesIO(self._fs.cat_file(path)), self._faults)
            return _FsspecReader(self._fs.open(path, "rb"), self._faults)

    def find(self, path: str) -> Found | None:
        with suppress(FileNotFoundError), self._faults():
            self._fs.invalidate_cache()
            info = self._fs.info(path)
            return _fsspec_found(info, path) if info["type"] == "file" else None
        return None

    def walk(self, path: str) -> Iterator[Found]:
        for info in sorted(patiently(path, "listed", lambda: self._list(path)), key=lambda info: str(info["name"])):
            name = info["name"].rstrip("/").removeprefix(path.rstrip("/")).strip("/")
            if info["type"] == "directory" and name:  # some file systems list the folder itself, too
                yield from (found._replace(path=f"{name}/{found.path}") for found in self.walk(info["name"]))
            elif name:
                yield _fsspec_found(info, name)

    def _list(self, path: str) -> list[dict[str, Any]]:
        with self._faults():
            self._fs.invalidate_cache()
            return self._fs.ls(path, detail=True)  # type: ignore[no-any-return]

    def names(self, path: str) -> list[str]:
        with self._faults(), suppress(FileNotFoundError):
            self._fs.invalidate_cache()
            return sorted(name.rstrip("/").rpartition("/")[2] for name in self._fs.ls(path, detail=False))
        return []

    def is_folder(self, path: str) -> bool:
        with self._faults():
            self._fs.invalidate_cache()
            return bool(self._fs.isdir(path))

    def write(self, path: str, data: bytes, check: Check = unchecked) -> None:
        check()
        with self._faults():
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(path, data)

    def create(self, path: str, data: bytes) -> bool:
        with self._faults():
            if self._fs.exists(path):
                return False
        self.write(path, data)
        return True

    def delete(self, path: str, check: Check = unchecked) -> None:
        check()
        with self._faults(), suppress(FileNotFoundError):
            self._fs.rm(path, recursive=True)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """File systems raise errors of many libraries. All but OSError count as faults.

        fsspec's HTTP file system reports every failed look-up as a missing file, and keeps the reason as the cause.
        """
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:
            if self._web:
                reason = error.__cause__ if isinstance(error, FileNotFoundError) else None
                raise _web_error(reason or error) from None
            if isinstance(error, OSError):
                raise
            raise OSError(first_line(error)) from error


class _FsspecReader:
    def __init__(self, stream: Any, faults: Callable[[], AbstractContextManager[None]]) -> None:
        self._stream, self._faults, self.size = stream, faults, stream.seek(0, io.SEEK_END)

    def read_at(self, start: int, length: int) -> bytes:
        with self._faults():
            self._stream.seek(start)
            return self._stream.read(length)  # type: ignore[no-any-return]

    def close(self) -> None:
        self._stream.close()


def _fsspec_found(info: dict[str, Any], path: str) -> Found:
    size = info.get("size")
    return Found(path, -1 if size is None else size, str(info.get("ETag") or info.get("etag") or ""))


_ABSENT, _DENIED, _BUSY = (404, 410), (401, 403), (408, 425, 429)
"""HTTP statuses. Other ones from 400 to 499 say something else about the file."""


def _web_error(error: BaseException) -> OSError:
    """The error of a request, as an answer of the web server or as a fault."""
    status = getattr(error, "status", 0)
    if status in _ABSENT:
        return FileNotFoundError("there is no such file")
    if status in _DENIED:
        return PermissionError("access denied")
    if isinstance(error, OSError):
        return error
    why = f"HTTP status {status}" if status else first_line(error)
    final = isinstance(error, ValueError) or (status in range(400, 500) and status not in _BUSY)
    return NotAFileError(why) if final else OSError(why)
