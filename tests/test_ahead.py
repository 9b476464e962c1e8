"""Threads that take items ahead of their use."""

import threading
from collections.abc import Iterator

import pytest

from mnist_ray.errors import DataError
from mnist_ray.run.ahead import ahead, import_ahead


def test_items_are_taken_before_they_are_asked_for() -> None:
    taken = threading.Event()

    def items() -> Iterator[int]:
        yield from range(1000)
        taken.set()

    found = ahead(items(), 10)
    assert next(found) == 0
    assert taken.wait(10)
    assert list(found) == list(range(1, 1000))


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 0  # an item like any other, although it is false
        raise DataError("damaged")

    found = ahead(items(), 10)
    assert next(found) == 0
    with pytest.raises(DataError, match="damaged"):
        next(found)


def test_the_thread_ends_with_the_generator() -> None:
    threads, more = threading.active_count(), threading.Event()

    def items() -> Iterator[int]:
        yield 1
        more.wait()
        yield from iter(int, 1)

    found = ahead(items(), 0.01)
    assert next(found) == 1
    assert next(found) is None, "the next item takes longer"
    threading.Timer(0.1, more.set).start()
    found.close()
    assert threading.active_count() <= threads + 1, "only the timer may be left"


def test_a_module_that_cannot_be_imported_is_somebody_elses_error(capfd: pytest.CaptureFixture[str]) -> None:
    before = threading.enumerate()
    import_ahead("mnist_ray.no_such_module")
    for thread in set(threading.enumerate()) - set(before):
        thread.join()
    assert capfd.readouterr().err == ""
