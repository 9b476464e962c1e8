"""The files of this machine."""

import errno
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mnist_ray.data.patience import ANSWERS, NotAFileError, patiently
from mnist_ray.data.store import Check, Found, Reader, unchecked
from mnist_ray.errors import StorageError


class LocalStore:
    """Files of this machine. Its methods are documented in `Store`."""

    def read(self, path: str, limit: int) -> bytes:
        handle, size = _open_local(path)
        try:
            data = os.read(handle, min(size, limit - 1) + 1)
            # If the size is as expected, the file has been read to its end. This saves one system call per file.
            if len(data) != size:
                while len(data) < limit and (more := os.read(handle, limit - len(data))):
                    data += more
            return data
        finally:
            os.close(handle)

    def open(self, path: str) -> Reader:
        return _LocalReader(path)

    def find(self, path: str) -> Found | None:
        info = _stat(path)
        return _found(info, path) if info else None

    def walk(self, path: str) -> Iterator[Found]:
        return _walk_local(path, "", frozenset())

    def names(self, path: str) -> list[str]:
        with suppress(FileNotFoundError):
            return sorted(os.listdir(path))
        return []

    def is_folder(self, path: str) -> bool:
        info = _stat(path)
        return info is not None and stat.S_ISDIR(info.st_mode)

    def write(self, path: str, data: bytes, check: Check = unchecked) -> None:
        with _scratch_file(path, data) as scratch:
            check()
            os.replace(scratch, path)

    def create(self, path: str, data: bytes) -> bool:
        with _scratch_file(path, data) as scratch, suppress(FileExistsError):
            try:
                os.link(scratch, path)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                with open(path, "xb") as stream:
                    stream.write(data)
            return True
        return False

    def delete(self, path: str, check: Check = unchecked) -> None:
        with suppress(FileNotFoundError):
            is_folder = os.path.isdir(path) and not os.path.islink(path)
            check()
            if is_folder:  # under another name, so that nothing is deleted that another process writes to the folder meanwhile
                scratch = _scratch_name(path)
                os.replace(path, scratch)
                shutil.rmtree(scratch)
            else:
                os.unlink(path)


_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}
"""What file systems without hard links say, such as FAT and some network mounts."""


def _stat(path: str) -> os.stat_result | None:
    """What the file system knows about a path; None if there is nothing."""
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:
        if isinstance(answer := _answer(error), (FileNotFoundError, NotADirectoryError, NotAFileError)):
            return None
        raise answer from None


def _found(info: os.stat_result, path: str) -> Found | None:
    return Found(path, info.st_size, str(info.st_mtime_ns)) if stat.S_ISREG(info.st_mode) else None


def _walk_local(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[Found]:
    """The files below a folder, by name. Links are followed, except to a folder that contains the link."""
    place = patiently(folder, "listed", lambda: os.stat(folder))
    if (place.st_dev, place.st_ino) in above:
        return
    above |= {(place.st_dev, place.st_ino)}
    names, folders = patiently(folder, "listed", lambda: _names(folder))
    for name in names:
        path = f"{folder}/{name}"
        if name in folders:
            yield from _walk_local(path, f"{prefix}{name}/", above)
            continue
        try:
            found = _found(os.stat(path), prefix + name)
        except OSError:
            found = None
        # Broken links, pipes and sockets are listed too, so that the table accounts for them.
        yield found or Found(prefix + name, -1, "")


def _names(folder: str) -> tuple[list[str], set[str]]:
    """The sorted names in a folder, and those of folders among them. Of millions of files, only the names stay in memory."""
    names, folders = [], set()
    for entry in os.scandir(folder):
        names.append(entry.name)
        if _is_folder(entry):
            folders.add(entry.name)
    names.sort()
    return names, folders


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether this is a folder, or a link to one. A link that leads nowhere is none."""
    try:
        return entry.is_dir()
    except OSError as error:
        if isinstance(_answer(error), ANSWERS):
            return False
        raise


_ANSWER_CODES = {errno.ELOOP: FileNotFoundError, errno.ENAMETOOLONG: FileNotFoundError, errno.ENXIO: NotAFileError}


def _answer(error: OSError | ValueError) -> OSError:
    """The error, as an answer if it says something about the file. Raises StorageError if this process cannot name the file."""
    if isinstance(error, UnicodeEncodeError) and (encoding := sys.getfilesystemencoding()) != "utf-8":
        raise StorageError(f"file names are {encoding} in this process, because of its locale; set PYTHONUTF8=1") from None
    if isinstance(error, ValueError):  # a null byte
        return NotAFileError(str(error))
    kind = _ANSWER_CODES.get(error.errno or 0)
    return kind(error.strerror) if kind else error


OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
"""How a file is opened. Without O_NONBLOCK, opening a FIFO that has no writer would block forever."""


def _open_local(path: str) -> tuple[int, int]:
    """A file handle and the size of the file."""
    try:
        handle = os.open(path, OPEN)
    except (OSError, ValueError) as error:
        raise _answer(error) from None
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode):
        os.close(handle)
        raise NotAFileError("not a regular file")
    return handle, info.st_size


class _LocalReader:
    def __init__(self, path: str) -> None:
        self._handle, self.size = _open_local(path)

    def read_at(self, start: int, length: int) -> bytes:
        return os.pread(self._handle, length, start)

    def close(self) -> None:
        os.close(self._handle)


_SCRATCH = re.compile(r"\.[0-9a-f]{32}\.tmp")


def delete_scratch(folder: str, sign: str) -> None:
    """Delete what a killed process has left below a folder: files that it was writing, and folders that it was deleting.

    Leaves out folders inside that hold a file with the name `sign`: they belong to another job, which may be writing.
    """
    for place, folders, files in os.walk(folder):
        if sign in files and place != folder:
            folders.clear()
            continue
        for name in filter(_SCRATCH.fullmatch, files):
            os.unlink(os.path.join(place, name))
        for name in filter(_SCRATCH.fullmatch, folders):
            shutil.rmtree(os.path.join(place, name))


def _scratch_name(path: str) -> str:
    """A new hidden name beside `path`."""
    return os.path.join(os.path.dirname(path) or ".", f".{uuid.uuid4().hex}.tmp")


@contextmanager
def _scratch_file(path: str, data: bytes) -> Iterator[str]:
    """A hidden file with this content beside `path`, deleted at the end."""
    scratch = _scratch_name(path)
    os.makedirs(os.path.dirname(scratch), exist_ok=True)
    try:
        with open(scratch, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        yield scratch
    finally:
        with suppress(FileNotFoundError):
            os.unlink(scratch)
