"""The history of a run as lines of JSON, and as events for TensorBoard."""

import json
from pathlib import Path

import pytest

from mnist_ray.learn.history import HistoryWriter


def _row(epoch: int, loss: float) -> dict[str, float]:
    return {"epoch": epoch, "samples_seen": epoch * 600, "train_loss": loss, "test_accuracy": 1 - loss}


@pytest.mark.filterwarnings("default")
def test_tensorboard_shows_each_epoch_once_for_a_continued_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    before = HistoryWriter(str(tmp_path))
    before.write([_row(1, 0.5)])
    before.write([_row(1, 0.5), _row(2, 0.4)])
    rows = [_row(1, 0.5), _row(2, 0.3), _row(3, 0.2)]  # continued from epoch 1, with other values
    HistoryWriter(str(tmp_path)).write(rows)
    assert [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()] == rows
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("train_loss")}
    assert found == pytest.approx({600: 0.5, 1200: 0.3, 1800: 0.2})
    assert set(events.Tags()["scalars"]) == {"train_loss", "test_accuracy"}
