"""Ctrl-C while a job starts: it is neither lost nor leaves Python's lock for imports locked."""

import importlib
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path

import pytest

from mnist_ray.run.signals import AGAIN_S, raising
from tests.conftest import wait_for

INTERRUPTED = "import signal\nsignal.raise_signal(signal.SIGINT)\nready = True\n"


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_import_is_finished_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    monkeypatch.syspath_prepend(tmp_path)

    @raising(signal.SIGINT, KeyboardInterrupt)
    def job() -> None:
        assert importlib.import_module("interrupted").ready
        wait_for(lambda: False)

    with pytest.raises(KeyboardInterrupt):
        job()
    del sys.modules["interrupted"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_comes_again() -> None:
    @raising(signal.SIGINT, KeyboardInterrupt)
    def job() -> None:
        things = [threading.Event()]
        gone = weakref.ref(things[0], lambda _: ctrl_c())
        things.clear()
        assert not gone()
        wait_for(lambda: False)

    with pytest.raises(KeyboardInterrupt):
        job()


def test_an_interrupt_that_a_library_drops_comes_again() -> None:
    @raising(signal.SIGINT, KeyboardInterrupt)
    def job() -> None:
        with suppress(BaseException):
            ctrl_c()
        wait_for(lambda: False)

    with pytest.raises(KeyboardInterrupt):
        job()


@pytest.mark.parametrize("second", [False, True])
def test_only_a_second_ctrl_c_interrupts_the_end_of_a_job(second: bool) -> None:
    ended = []

    @raising(signal.SIGINT, KeyboardInterrupt)
    def job() -> None:
        try:
            ctrl_c()
        finally:
            time.sleep(5 * AGAIN_S)
            if second:
                ctrl_c()
            ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        job()
    assert bool(ended) != second


def test_the_next_handler_is_told_once() -> None:
    told = []
    with suppress(KeyboardInterrupt), raising(signal.SIGINT, KeyboardInterrupt):
        with suppress(BaseException):
            ctrl_c()
        before = signal.signal(signal.SIGINT, lambda number, _: told.append(number))
        try:
            wait_for(lambda: told)
        finally:
            signal.signal(signal.SIGINT, before)
    assert told == [signal.SIGINT]


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with raising(signal.SIGINT, KeyboardInterrupt):
            ctrl_c()
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert before == signal.default_int_handler


AT_IMPORT = """
import signal, sys
from mnist_ray.__main__ import main

class Field:
    def __set_name__(self, *_):
        signal.raise_signal(signal.SIGINT)

class Interrupted:
    def find_spec(self, name, *_):
        if name == "mnist_ray.cli":
            type("Some", (), {"field": Field()})

sys.meta_path.insert(0, Interrupted())
sys.exit(main())
"""
"""Python 3.11 makes a RuntimeError of what `__set_name__` raises, as while dataclasses are defined."""


def test_ctrl_c_while_the_command_line_is_imported_ends_with_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", AT_IMPORT, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
