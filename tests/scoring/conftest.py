"""Scoring jobs that run through `score()`, with a thread of this process as their only worker."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from mnist_ray import score_job as scoring_job
from mnist_ray.config import ScoreConfig
from mnist_ray.console import Console
from mnist_ray.run import processes
from mnist_ray.scoring.unit import score_unit
from tests.conftest import thread_pool

Run = Callable[..., dict[str, Any]]


class KilledError(Exception):
    """Ends a job as if it was killed."""


def killed(*_: object) -> None:
    raise KilledError


@pytest.fixture(autouse=True)
def reports_without_charts(no_charts: None) -> None:
    """Jobs of these tests draw no charts."""


@pytest.fixture
def run(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A function that scores inputs. With `kill_after`, the job dies after so many units."""

    def run(*inputs: object, out: Path, model: Path = run_dir, kill_after: int = -1, **options: Any) -> dict[str, Any]:
        scored = count()

        def score_or_die(*args: Any) -> Any:
            if next(scored) == kill_after:
                raise KilledError
            return score_unit(*args)

        monkeypatch.setattr(processes, "score_unit", score_or_die)
        names = tuple(str(item) for item in inputs)
        return scoring_job.score(ScoreConfig(inputs=names, model=str(model), out=str(out), workers="0", **options), Console())

    threads = torch.get_num_threads()
    monkeypatch.setattr(processes, "ProcessPoolExecutor", thread_pool(1))
    yield run
    torch.set_num_threads(threads)


def rows(out: Path, table: str = "predictions") -> list[dict[str, Any]]:
    return sorted(pq.read_table(out / table).to_pylist(), key=lambda row: (row["source"], row["row"] or 0))


def parts(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "predictions").glob("[!.]*")}  # not those being written


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"
