"""A local disk or mount that fails in the middle of scoring. The failing system call is a double; all else is real."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from mnist_ray.data import patience, storage
from mnist_ray.run import processes
from mnist_ray.scoring.unit import score_unit
from tests.conftest import cli, thread_pool

Fail = Callable[[str, int | None], None]


@pytest.fixture(autouse=True)
def in_this_process(no_charts: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Units are scored by a thread of this process, where the doubles are, and storage may fail for 1 s only."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(processes, "ProcessPoolExecutor", thread_pool(1))
    monkeypatch.setattr(patience, "PATIENCE_S", 1.0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """A function that lets reads of a file fail with an I/O error, so many times or always."""
    read, pread = os.read, os.pread

    def start(name: str, times: int | None) -> None:
        failures = count()

        def check(handle: int) -> None:
            of_file = os.readlink(f"/proc/self/fd/{handle}").endswith(name)
            if of_file and (times is None or next(failures) < times):
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        def failing_read(handle: int, size: int) -> bytes:
            check(handle)
            return read(handle, size)

        def failing_pread(handle: int, size: int, offset: int) -> bytes:
            check(handle)
            return pread(handle, size, offset)

        monkeypatch.setattr(os, "read", failing_read)
        monkeypatch.setattr(os, "pread", failing_pread)

    return start


def score(inputs: Path, run: Path, out: Path, *flags: str) -> tuple[int, str]:
    done = cli("score", str(inputs), "--model", str(run), "--out", str(out), "--workers", "0", "--unit-rows", "25", *flags)
    return done.returncode, done.stderr


def predicted_and_quarantined(out: Path) -> tuple[int, int]:
    return pq.read_table(out / "predictions").num_rows, len(list((out / "quarantine").glob("*")))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to tell which file a handle belongs to")
def test_an_image_that_can_be_read_at_the_third_try_is_predicted(
    fail: Fail, digit_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    fail("00150.png", 2)
    assert score(digit_folder, run_dir, tmp_path)[0] == 0
    assert predicted_and_quarantined(tmp_path) == (300, 0)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to tell which file a handle belongs to")
def test_an_image_that_cannot_be_read_stops_the_job(fail: Fail, digit_folder: Path, run_dir: Path, tmp_path: Path) -> None:
    """It is not quarantined: --resume reads it again and completes the job."""
    fail("00150.png", None)
    status, said = score(digit_folder, run_dir, tmp_path)
    assert status == 8, said
    assert "00150.png: cannot be read: Input/output error" in said
    assert "--resume" in said
    assert not (tmp_path / "quarantine").exists()
    fail("00150.png", 0)
    status, said = score(digit_folder, run_dir, tmp_path, "--resume")
    assert status == 0, said
    assert predicted_and_quarantined(tmp_path) == (300, 0)


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_an_input_folder_that_vanishes_stops_the_job(
    left: str, monkeypatch: pytest.MonkeyPatch, digit_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    """It is unmounted after three units. An empty folder is what stays of a mount."""
    folder, away, units = shutil.copytree(digit_folder, tmp_path / "mount" / "in"), tmp_path / "away", count()

    def unmount_and_score(*args: object) -> object:
        if next(units) == 3:
            folder.parent.rename(away)
            if left != "nothing":
                folder.mkdir(parents=True)
        return score_unit(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(processes, "score_unit", unmount_and_score)
    status, said = score(folder, run_dir, tmp_path / "out")
    assert status == 8, said
    assert not (tmp_path / "out" / "quarantine").exists()
    shutil.rmtree(folder.parent, ignore_errors=True)
    away.rename(folder.parent)
    status, said = score(folder, run_dir, tmp_path / "out", "--resume")
    assert status == 0, said
    assert predicted_and_quarantined(tmp_path / "out") == (300, 0)


def test_a_file_system_without_hard_links_has_one_owner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(partial(storage.create, str(tmp_path / "owner.json")), [b"%d" % job for job in range(8)]))
    assert created.count(True) == 1
    assert (tmp_path / "owner.json").read_bytes() == b"%d" % created.index(True)
    assert os.listdir(tmp_path) == ["owner.json"]
