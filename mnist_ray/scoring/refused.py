"""Files that a storage does not give. It says that they are missing or denied, and may say so of any file by mistake."""

import platform

from mnist_ray.data import storage
from mnist_ray.data.bulk import read_many
from mnist_ray.data.containers import MAX_BYTES, Reason, Rejection
from mnist_ray.data.patience import patiently
from mnist_ray.errors import StorageError

REFUSED = (Reason.MISSING, Reason.UNREADABLE)
"""Reasons that a storage gives for a file, and may give for any file while it is out of order."""


def rejection_of(answer: OSError) -> Rejection:
    """The Rejection of a file for which the storage has this answer."""
    if isinstance(answer, FileNotFoundError):
        return Rejection(Reason.MISSING, "there is no such file")
    return Rejection(Reason.UNREADABLE, answer.strerror or str(answer))


def ask_again(uris: list[str], refused: dict[int, Rejection], listed: list[int]) -> list[bytes | OSError]:
    """What the storage says now about the files at the positions `refused`, which it did not give. Raises StorageError.

    It may have been out of order for a moment: unmounted, for example, or its permissions were being changed. So it is asked
    once it gives a file that it has given before. The files at the positions `listed` were there when the plan was made.
    """
    first, *_ = refused
    given = [uri for position, uri in enumerate(uris) if position not in refused][:1]

    def ask() -> list[bytes | OSError]:
        if any(isinstance(answer, OSError) for answer in read_many(given, limit=0)):
            raise OSError(f"{refused[first].detail}, and now {given[0]} cannot be read either, which could be read before")
        answers = dict(zip(refused, read_many([uris[position] for position in refused], MAX_BYTES), strict=True))
        if listed and all(isinstance(answers.get(position), PermissionError) for position in listed):
            _require_folder([uris[position] for position in listed])
        return list(answers.values())

    if storage.is_local(uris[0]):
        _require_visible([uris[position] for position in listed], [refused[row] for row in listed if row in refused])
    return patiently(uris[first], "read", ask)


def _require_folder(uris: list[str]) -> None:
    """Raise OSError if the denied files `uris` are several, or if their storage does not show the folder of the only one."""
    if len(uris) > 1 or not storage.is_folder(uris[0].rpartition("/")[0]):
        others = f", as to {len(uris) - 1:,} others of the job" if len(uris) > 1 else ""
        raise OSError(f"access is denied{others}; check the permissions, then run with --resume")


def _require_visible(uris: list[str], refused: list[Rejection]) -> None:
    """Raise StorageError if no local file of several is accessible, or the folder of the only one is gone.

    All were listed when the plan was made. One file may have been deleted since. If all are gone, their storage is probably not
    mounted here, or this machine sees another folder of this name.
    """
    if not refused or len(refused) < len(uris) or (len(uris) == 1 and storage.is_folder(uris[0].rpartition("/")[0])):
        return
    raise StorageError(
        f"{uris[0]}: {refused[0].detail} on {platform.node()}. The job listed {len(uris)} such files, and none can be "
        "read there. Share their folder with this machine and run with --resume; if they were deleted, give --overwrite"
    )
