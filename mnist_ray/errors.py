"""The errors that a user can cause or encounter, and the exit status of each.

A message states what was found, what was expected and what to do. Any other exception is a defect of this program: it keeps
its traceback, and the exit status is 1.
"""

EXIT_STATUSES = {
    0: "done",
    1: "a defect of this program, or a problem that doctor found",
    2: "wrong usage",
    3: "input data missing or damaged",
    4: "model missing or damaged",
    5: "the output folder holds something else, or another job writes to it",
    6: "inputs and table do not add up",
    7: "the Ray cluster is unreachable or too small, or lost its workers; or memory ran out",
    8: "storage failed",
    9: "no input could be scored",
    10: "more inputs are quarantined than --max-quarantined allows",
    130: "interrupted",
    143: "stopped on request, with finished work kept",
}


class MnistRayError(Exception):
    """Base of all errors that are reported as one line, without a traceback."""

    exit_status = 1


class UsageError(MnistRayError):
    """A flag has a wrong value, or flags do not go together."""

    exit_status = 2


class DataError(MnistRayError):
    """Input data is missing, damaged or in another format than expected."""

    exit_status = 3


class ModelError(MnistRayError):
    """A model bundle or checkpoint is missing, damaged or of another version."""

    exit_status = 4


class OutputError(MnistRayError):
    """The output folder holds something that this job would not continue, or another job writes to it."""

    exit_status = 5


class AccountingError(MnistRayError):
    """A prediction table lacks an input, has one twice, or cannot be read."""

    exit_status = 6


class ClusterError(MnistRayError):
    """The Ray cluster cannot be reached, is too small, or lost its workers for good."""

    exit_status = 7


class StorageError(MnistRayError):
    """Storage failed to list, read or write."""

    exit_status = 8


class NothingScoredError(MnistRayError):
    """A scoring job has quarantined all its inputs."""

    exit_status = 9


class QuarantineError(MnistRayError):
    """A scoring job has quarantined more inputs than `--max-quarantined` allows."""

    exit_status = 10


class DefectError(Exception):
    """An unexpected exception in another process: a defect of this program. The text holds the traceback of that process."""


class StoppedError(MnistRayError):
    """The job was asked to stop and has saved its work."""

    exit_status = 143


def from_status(status: int, message: str) -> MnistRayError:
    """The error with this exit status. Processes send each other errors as status and message, which are plain values."""
    return next(kind for kind in MnistRayError.__subclasses__() if kind.exit_status == status)(message)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
