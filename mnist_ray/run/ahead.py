"""Threads that work ahead: they take items from an iterator, or import modules."""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from importlib import import_module
from typing import TypeVar

T = TypeVar("T")


def ahead(
    items: Iterable[T], tick_s: float, end: Callable[[], object] = lambda: None, wait_s: float | None = None
) -> Generator[T | None]:
    """The same items, and the error that ends them; None after `tick_s` without one.

    The thread ends with this generator, after its current item. `end` is called then, to end the item; the generator waits for
    the thread, but no longer than `wait_s`.
    """
    found: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
    stop = threading.Event()

    def take() -> None:
        try:
            for item in items:
                if stop.is_set():
                    return
                found.put((item,))
            found.put(None)
        except BaseException as error:
            found.put(error)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        while True:
            try:
                entry = found.get(timeout=tick_s)
            except queue.Empty:
                yield None
                continue
            if entry is None:
                return
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]
    finally:
        stop.set()
        end()
        thread.join(wait_s)


def import_ahead(module: str, after_s: float = 0.0) -> None:
    """Import a module in a thread, after so many seconds. Errors are ignored here: the real import raises them again.

    Call it long before the module is needed. Code that imports it while the thread fails would see half a module.
    """

    def load() -> None:
        time.sleep(after_s)
        with suppress(Exception):
            import_module(module)

    threading.Thread(target=load, daemon=True).start()
