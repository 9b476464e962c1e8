"""Progress records reach the driver, and training does not wait for the storage that holds them."""

import json
import threading
from pathlib import Path

import pytest

from mnist_ray.cluster.fit import RayControl
from mnist_ray.data import storage
from mnist_ray.errors import StorageError
from mnist_ray.learn.control import Meeting
from mnist_ray.run import progress


def _record(samples: int) -> dict[str, object]:
    return {"samples_seen": samples, "history": []}


def test_training_does_not_wait_for_the_storage_and_the_last_record_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage takes the first record only after training has ended."""
    entered, released, written = threading.Event(), threading.Event(), []

    def write(_uri: str, data: bytes, patience_s: float) -> None:
        entered.set()
        assert released.wait(60)
        written.append(json.loads(data)["samples_seen"])

    monkeypatch.setattr(storage, "write", write)
    with progress.Publisher(str(tmp_path)) as publisher:
        control = RayControl(str(tmp_path), "token", Meeting(), publisher)
        control.show(_record(1))
        assert entered.wait(60)
        for samples in (2, 3):
            control.show(_record(samples))
        assert not written
        released.set()
    assert written == [1, 3]


def test_a_record_that_cannot_be_written_does_not_stop_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed, write = threading.Event(), storage.write

    def fail_once(uri: str, data: bytes, patience_s: float | None = None) -> None:
        if not failed.is_set():
            failed.set()
            raise StorageError("full")
        write(uri, data, patience_s)

    monkeypatch.setattr(storage, "write", fail_once)
    with progress.Publisher(str(tmp_path)) as publisher:
        publisher.publish(_record(1))
        assert failed.wait(60)
        publisher.publish(_record(2))
    assert json.loads((tmp_path / "progress.json").read_text())["samples_seen"] == 2
