"""The inputs of a job: the INPUT arguments, resolved to a stream of image files and a list of Parquet files."""

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import chain, groupby, islice

from fsspec.utils import glob_translate

from mnist_ray.data import csv_table, storage
from mnist_ray.data.bulk import read_many
from mnist_ray.data.containers import HEAD_BYTES, has_signature
from mnist_ray.data.images import IMAGE_SUFFIXES, digit_of, label_of
from mnist_ray.data.listing import FileEntry, ImageFile, batches, stat_files, walk
from mnist_ray.errors import DataError, UsageError
from mnist_ray.scoring import manifest
from mnist_ray.scoring.ignored import Ignored, Why
from mnist_ray.scoring.tables import Kept

_TABLE = ".parquet"
_SUFFIXES = (*IMAGE_SUFFIXES, _TABLE)
"""Files that are scored if they are found. A CSV file, which is often something else, must be an input itself."""


_HEADS_AT_ONCE = 256
"""Files without a suffix that are looked into together."""


class Listing:
    """The files to score, listed as `images` is iterated over. `tables` and `ignored` are complete once it is exhausted.

    A file that two inputs contain is listed once. So if there are several inputs, or a glob, the names stay in memory.
    Each line of a manifest is an input, even if it repeats another line.
    """

    def __init__(self, inputs: tuple[str, ...], truth: str, out: str, kept: Kept, image_column: str = "") -> None:
        """List the first file of each input. Notes the columns of manifests in `kept`.

        Raises DataError for an input with nothing to score, and UsageError.
        """
        self.tables: list[FileEntry] = []
        """Parquet files, and CSV files of pixels."""
        self.ignored = Ignored()
        """Files in input folders that are not scored."""
        self.truths: set[str] = set()
        """Where true digits were found: folder names, or columns."""
        self._num_found = 0
        self._out = out
        self._truth, self._kept, self._image_column = truth, kept, image_column
        self._seen: set[str] = set()
        self._remember = len(inputs) > 1 or glob.has_magic(inputs[0])
        for item in inputs:
            if _lies_in(item, out):
                raise UsageError(f"{item}: lies in the output folder {out}; give another --out")
        self._streams = [self._start(item) for item in sorted(inputs)]

    def images(self) -> Iterator[ImageFile]:
        """The image files of every input. Raises DataError."""
        return chain.from_iterable(self._streams)

    def _start(self, item: str) -> Iterator[ImageFile]:
        before, stream = self._num_found, self._images_of(item)
        first = list(islice(stream, 1))
        if not first and self._num_found == before:
            raise DataError(
                f"{item}: holds nothing to score: no {' '.join(IMAGE_SUFFIXES)} and no {_TABLE}; "
                f"{self.ignored.count} other files were ignored. A CSV file must be named itself"
            )
        return chain(first, stream)

    def _images_of(self, item: str) -> Iterator[ImageFile]:
        if storage.is_folder(item):
            return self._images_among(self._visible(item, walk(item)), item)
        if storage.is_file(item):  # a manifest, or a table, or an image with any suffix
            lines = manifest.lines(item, self._truth, self.truths, self._kept, self._image_column)
            return self._images_among(stat_files([item]), suffixes=("",)) if lines is None else lines
        if glob.has_magic(item):
            return self._images_among(self._visible(item, _glob(item)))
        raise DataError(f"{item}: there is no such file or folder; expected a folder, a glob, an image or a manifest")

    def _visible(self, item: str, entries: Iterable[FileEntry]) -> Iterator[FileEntry]:
        """The files below an input without hidden ones, such as `._7.png` of macOS, which are ignored."""
        fixed = len(_fixed_part(item) if glob.has_magic(item) else item.rstrip("/"))
        for entry in entries:
            if "/." in entry.uri[fixed:]:
                self.ignored.add(entry, Why.HIDDEN)
            else:
                yield entry

    def _images_among(
        self, entries: Iterable[FileEntry], folder: str = "", suffixes: tuple[str, ...] = _SUFFIXES
    ) -> Iterator[ImageFile]:
        """The images among these files, of a folder if it is given. Adds tables to `tables`, and others to `ignored`."""
        sources: dict[str, Callable[[str], int | None]] = {"folder": digit_of, "auto": _FirstLevel(folder)}
        truth_of = sources.get(self._truth, _unknown)
        for entry in self._recognised(entries, folder, suffixes):
            self._num_found += 1
            if entry.uri in self._seen:
                continue
            if self._remember:
                self._seen.add(entry.uri)
            if entry.uri.lower().endswith((_TABLE, *csv_table.SUFFIXES)):
                if not _lies_in(entry.uri, self._out):  # the folder of the output may be listed through a link
                    self.tables.append(entry)
            else:
                truth = truth_of(entry.uri)
                if truth is not None:
                    self.truths.add("folder names")
                yield ImageFile(entry, truth)

    def _recognised(self, entries: Iterable[FileEntry], folder: str, suffixes: tuple[str, ...]) -> Iterator[FileEntry]:
        """The files with one of these suffixes, and those without a suffix whose content is an image. Ignores the others.

        The output folder, which may lie below the input folder `folder`, is left out.
        """
        own = f"{_as_seen_from(folder, self._out)}/"
        outside = (entry for entry in entries if not entry.uri.startswith(own))
        for kind, group in groupby(outside, lambda entry: _kind(entry.uri, suffixes)):
            if kind == "known":
                yield from group
            elif kind == "none":
                for some in batches(group, _HEADS_AT_ONCE):
                    heads = read_many([entry.uri for entry in some], HEAD_BYTES)
                    for entry, head in zip(some, heads, strict=True):
                        # Nobody knows what a file is that cannot be read. So it is an input, and is quarantined.
                        if isinstance(head, PermissionError) or (isinstance(head, bytes) and has_signature(head)):
                            yield entry
                        else:
                            self.ignored.add(entry, Why.NO_IMAGE)
            else:
                for entry in group:
                    self.ignored.add(entry, Why.OTHER_SUFFIX)


def _real(uri: str) -> str:
    """A local path without symbolic links; a URI as it is."""
    return os.path.realpath(uri) if storage.is_local(uri) else uri


def _lies_in(uri: str, folder: str) -> bool:
    return f"{_real(uri)}/".startswith(f"{_real(folder)}/")


def _as_seen_from(folder: str, out: str) -> str:
    """The output folder with the prefix that listed files below `folder` have: `folder` may be a link."""
    return folder.rstrip("/") + _real(out)[len(_real(folder).rstrip("/")) :] if folder and _lies_in(out, folder) else out


def _kind(uri: str, suffixes: tuple[str, ...]) -> str:
    """Whether the suffix of a file is `known`, or another one, or none."""
    if uri.lower().endswith(suffixes):
        return "known"
    return "other" if "." in uri.rpartition("/")[2] else "none"


def _unknown(_uri: str) -> None:
    """No true label."""


class _FirstLevel:
    """The true label of a file in an input folder, if all folders directly in that folder are named after classes."""

    def __init__(self, folder: str) -> None:
        """`folder` is empty if there is no such folder: no file has a label then."""
        self._folder, self._start = folder, len(folder.rstrip("/")) + 1

    def __call__(self, uri: str) -> int | None:
        """The label of the file at a path or URI below the folder."""
        name, in_folder, _ = uri[self._start :].partition("/")
        label = label_of(name) if self._folder and in_folder else None
        return None if label is None or self._others else label

    @cached_property
    def _others(self) -> list[str]:
        """Folders that are not named after a class. A name with a dot counts as a file."""
        names = [name for name in storage.names(self._folder) if label_of(name) is None and "." not in name]
        return [name for name in names if storage.is_folder(storage.join(self._folder, name))]


def _fixed_part(pattern: str) -> str:
    """The folder above the first wildcard of a glob."""
    return re.split(r"[*?[]", pattern)[0].rpartition("/")[0]


def _glob(pattern: str) -> Iterator[FileEntry]:
    """The files that a pattern matches, and those below folders that it matches. Raises StorageError."""
    fixed = _fixed_part(pattern)
    parts = pattern[len(fixed) + 1 :].split("/")
    return _matching(fixed or "/", parts) if storage.is_local(pattern) else _below(fixed, parts)


def _matching(folder: str, parts: list[str]) -> Iterator[FileEntry]:
    """The files below a local folder that the parts of a pattern match. Other folders are not listed."""
    if not storage.is_folder(folder):
        return
    if parts[0] == "**":
        yield from _below(folder, parts)
        return
    for name in fnmatch.filter(storage.names(folder), parts[0]):
        if name.startswith(".") and not parts[0].startswith("."):
            continue
        path = storage.join(folder, name)
        if parts[1:]:
            yield from _matching(path, parts[1:])
        else:
            yield from walk(path) if storage.is_folder(path) else stat_files([path])


def _below(folder: str, parts: list[str]) -> Iterator[FileEntry]:
    """The files below a folder of any storage that the parts of a pattern match. Lists all files below it."""
    pattern = "/".join(part if part == "**" else re.sub(r"\*+", "*", part) for part in parts)
    matches = re.compile(f"{glob_translate(pattern)}|{glob_translate(f'{pattern}/**')}").match
    start = len(folder.rstrip("/")) + 1
    return (entry for entry in walk(folder) if matches(entry.uri[start:]))
