"""The errors a user can cause or meet, one exit status each.

A message says what was found, what was expected and what to do. Anything that is not one of these is a defect of
the program and keeps its traceback (exit status 1).
"""

from __future__ import annotations


class MnistRayError(Exception):
    """Base of all errors that are reported as one line, without a traceback."""

    exit_status = 1


class UsageError(MnistRayError):
    """A flag, or a combination of flags, that cannot be right."""

    exit_status = 2


class DataError(MnistRayError):
    """Input data that is missing, damaged or not what was announced."""

    exit_status = 3


class ModelError(MnistRayError):
    """A bundle or checkpoint that is missing, damaged or of another version."""

    exit_status = 4


class OutputError(MnistRayError):
    """An output folder that holds something else than this run would continue."""

    exit_status = 5


class AccountingError(MnistRayError):
    """An output in which some input is missing, doubled or unreadable."""

    exit_status = 6


class ClusterError(MnistRayError):
    """A Ray cluster that cannot be reached, is too small, or lost its workers for good."""

    exit_status = 7


class StorageError(MnistRayError):
    """Storage that refused to list, read or write."""

    exit_status = 8


class StoppedError(MnistRayError):
    """A job that was asked to stop, and has saved what it had."""

    exit_status = 143


def from_status(status: int, message: str) -> MnistRayError:
    """The error of this exit status: a way through a process boundary that keeps only plain values."""
    return next(kind for kind in MnistRayError.__subclasses__() if kind.exit_status == status)(message)


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
