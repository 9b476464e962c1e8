import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_ray.config import TrainConfig
from mnist_ray.errors import OutputError
from mnist_ray.learn import state


@pytest.fixture
def training() -> state.TrainState:
    return state.make_state(TrainConfig(), 600, torch.device("cpu"))


def _save(run: Path, training: state.TrainState, *positions: int) -> None:
    for position in positions:
        training.samples_seen = position
        state.save_checkpoint(str(run), training, "meaning")


def _position(run: Path) -> tuple[int, list[str]]:
    found, warnings = state.newest_checkpoint(str(run), "meaning")
    assert found is not None
    loaded = state.make_state(TrainConfig(), 600, torch.device("cpu"))
    loaded.load_bytes(found, str(run))
    return loaded.samples_seen, warnings


def test_the_newest_three_checkpoints_are_kept(training: state.TrainState, tmp_path: Path) -> None:
    _save(tmp_path, training, 100, 200, 300, 400, 1000)
    kept = [folder.name for folder in sorted((tmp_path / "checkpoints").iterdir())]
    assert kept == ["samples-000000000300", "samples-000000000400", "samples-000000001000"]
    assert _position(tmp_path) == (1000, [])


def _empty(folder: Path) -> None:
    (folder / "state.pt").write_bytes(b"")


def _cut(folder: Path) -> None:
    data = (folder / "state.pt").read_bytes()
    (folder / "state.pt").write_bytes(data[: len(data) // 2])


def _flip(folder: Path) -> None:
    data = bytearray((folder / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "state.pt").write_bytes(data)


def _unmark(folder: Path) -> None:
    (folder / "commit.json").unlink()


def _garble(folder: Path) -> None:
    (folder / "commit.json").write_text("[]")


@pytest.mark.parametrize("damage", [_empty, _cut, _flip, _unmark, _garble])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    damage: object, training: state.TrainState, tmp_path: Path
) -> None:
    _save(tmp_path, training, 100, 200)
    damage(tmp_path / "checkpoints" / "samples-000000000200")  # type: ignore[operator]
    position, warnings = _position(tmp_path)
    assert position == 100
    assert len(warnings) == 1
    assert "samples-000000000200: this checkpoint is damaged" in warnings[0]


def test_a_checkpoint_older_than_skipped_ones_is_kept(training: state.TrainState, tmp_path: Path) -> None:
    _save(tmp_path, training, 100, 200, 300, 400)
    for position in (300, 400):
        _flip(tmp_path / "checkpoints" / f"samples-{position:012d}")
    assert _position(tmp_path)[0] == 200
    _save(tmp_path, training, 250)
    position, warnings = _position(tmp_path)
    assert (position, len(warnings)) == (250, 2)
    _save(tmp_path, training, 300, 400)
    assert _position(tmp_path) == (400, [])


def test_a_checkpoint_of_another_run_is_refused(training: state.TrainState, tmp_path: Path) -> None:
    _save(tmp_path, training, 100)
    with pytest.raises(OutputError, match="holds a run with other settings or data"):
        state.newest_checkpoint(str(tmp_path), "other")


def _rename_best(saved: dict[str, Any]) -> None:
    saved["highest"] = saved.pop("best")


def _rename_loss(saved: dict[str, Any]) -> None:
    saved["tally"]["loss"] = saved["tally"].pop("loss_sum")


def _shorten_optimizer(saved: dict[str, Any]) -> None:
    saved["optimizer"].pop()


@pytest.mark.parametrize("change", [_rename_best, _rename_loss, _shorten_optimizer])
def test_a_checkpoint_with_other_fields_is_refused(
    change: Callable[[dict[str, Any]], None], training: state.TrainState
) -> None:
    saved = torch.load(io.BytesIO(training.to_bytes()), weights_only=True)
    change(saved)
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    with pytest.raises(OutputError, match=r"^runs/a: another version of this program wrote its checkpoint"):
        training.load_bytes(buffer.getvalue(), "runs/a")


def test_a_new_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert state.newest_checkpoint(str(tmp_path), "meaning") == (None, [])
