"""INPUT arguments to what there is to score: a stream of image files, and Parquet files."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from fsspec.utils import glob_translate

from mnist_ray.data import storage
from mnist_ray.data.images import IMAGE_SUFFIXES, digit_of
from mnist_ray.data.listing import FileEntry, ImageFile, stat_files, walk
from mnist_ray.errors import DataError, UsageError
from mnist_ray.scoring import manifest

_WILDCARDS = "*?["
_TABLE = ".parquet"
_SUFFIXES = (*IMAGE_SUFFIXES, _TABLE)


class Listing:
    """Everything to score, listed as it is asked for: what all of it holds is known when `images` has come to its end.

    A file found by two inputs is listed once, for which the names are held; one folder or one manifest needs no such list.
    Lines of a manifest are inputs each of its own, even if they are equal.
    """

    def __init__(self, inputs: tuple[str, ...], truth_column: str, out: str) -> None:
        """Look at each input's first file. Raises DataError for one that holds nothing to score, and UsageError."""
        self.tables: list[FileEntry] = []
        """Parquet files."""
        self.ignored = 0
        """Files in folders that are neither images nor Parquet."""
        self._met = 0
        self._out = f"{out}/"
        self._truth_column = truth_column
        self._seen: set[str] | None = set() if len(inputs) > 1 or any(mark in inputs[0] for mark in _WILDCARDS) else None
        for item in inputs:
            if f"{item}/".startswith(self._out):
                raise UsageError(f"{item}: lies in the output folder {out}; give another --out")
        self._streams = [self._begun(item) for item in sorted(inputs)]

    def images(self) -> Iterator[ImageFile]:
        """The image files of every input. Raises DataError."""
        return chain.from_iterable(self._streams)

    def _begun(self, item: str) -> Iterator[ImageFile]:
        before, stream = self._met, self._images_of(item)
        first = next(stream, None)
        if first is not None:
            return chain([first], stream)
        if self._met == before:
            raise DataError(
                f"{item}: holds nothing to score: no {' '.join(IMAGE_SUFFIXES)} and no {_TABLE}; "
                f"{self.ignored} other files were passed over"
            )
        return iter(())

    def _images_of(self, item: str) -> Iterator[ImageFile]:
        if storage.is_folder(item):
            yield from self._known_by_suffix(walk(item))
        elif storage.is_file(item):
            yield from self._file(item)
        elif any(mark in item for mark in _WILDCARDS):
            yield from self._known_by_suffix(_glob(item))
        else:
            raise DataError(f"{item}: there is no such file or folder; expected a folder, a glob, an image or a manifest")

    def _new(self, entry: FileEntry) -> bool:
        """Whether this file, which is to be scored, was not listed before."""
        self._met += 1
        if self._seen is None:
            return True
        before = len(self._seen)
        self._seen.add(entry.uri)
        return len(self._seen) > before

    def _known_by_suffix(self, entries: Iterable[FileEntry]) -> Iterator[ImageFile]:
        for entry in entries:
            name = entry.uri.lower()
            if entry.uri.startswith(self._out):
                continue
            if not name.endswith(_SUFFIXES):
                self.ignored += 1
            elif not self._new(entry):
                continue
            elif name.endswith(_TABLE):
                self.tables.append(entry)
            else:
                yield ImageFile(entry, digit_of(entry.uri))

    def _file(self, item: str) -> Iterator[ImageFile]:
        """A file that was named: a manifest, a Parquet file, or else an image, whatever its name."""
        lines = manifest.lines(item, self._truth_column)
        if lines is not None:
            yield from lines
            return
        (entry,) = stat_files([item])
        if not self._new(entry):
            return
        if item.lower().endswith(_TABLE):
            self.tables.append(entry)
        else:
            yield ImageFile(entry, digit_of(item))


def _glob(pattern: str) -> Iterator[FileEntry]:
    if storage.is_local(pattern):
        for found in sorted(glob.iglob(storage.absolute(pattern), recursive=True)):
            yield from walk(found) if storage.is_folder(found) else stat_files([found])
        return
    fixed = pattern[: min(pattern.index(mark) for mark in _WILDCARDS if mark in pattern)].rpartition("/")[0]
    matches = re.compile(glob_translate(pattern)).match
    yield from (entry for entry in walk(fixed) if matches(entry.uri))
