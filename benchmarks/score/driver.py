"""The driver's part of a scoring job with up to a million units: the real code, with no-op units in place of workers.

    python -m benchmarks.score.driver files --units 10000,100000,1000000 --inputs 10
    python -m benchmarks.score.driver rows --units 10000,100000,1000000 --inputs 1000
    python -m benchmarks.score.driver files --units 10000,100000 --inputs 10 --resume
    python -m benchmarks.score.driver rows --units 2000,6000 --inputs 1000 --ray

`files` plans image files and `rows` row ranges of Parquet files, `--inputs` in each unit. Their listing is generated. All else
is the code of `mnist_ray.score_job`. It writes its plan and records to a temporary folder. A no-op unit creates an empty file
instead of its part. Results come back in random order from as many units as 100 nodes with 8 workers each hold at a time.
With `--resume`, the parts have rows, and the measured job is a second one, which finds them all. With `--ray`, two actors on a
local cluster answer, through Ray Data as in a real job, and the start of Ray counts. Every job is a process of its own; its
memory is the peak without that of an idle process.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.train.compare import machine
from mnist_ray import score_job as scoring_job
from mnist_ray.artifact import seal
from mnist_ray.config import ScoreConfig
from mnist_ray.console import Quiet
from mnist_ray.data import storage
from mnist_ray.data.listing import FileEntry
from mnist_ray.run import processes
from mnist_ray.scoring import inputs, schema, tables
from mnist_ray.scoring.job import Job, UnitResult
from mnist_ray.scoring.parts import PREDICTIONS, part_name, strays, write_part
from mnist_ray.scoring.plan import UnitRef, fingerprint, load_plan
from mnist_ray.scoring.planner import Planner

IN_FLIGHT = 100 * 8 * 4
"""Units at the workers of 100 nodes: on each of 8 cores, the unit that it scores and the next three."""
FOLDER = "s3://bucket/scans"
FILES = 10_000
"""Image files of a generated folder."""
GROUPS = 100
"""Row groups of a generated Parquet file. Each becomes a unit."""
SIZE, VERSION = 300, "1795000000000000000"

Write = Callable[[Job, UnitResult], None]


class Stopwatch:
    """CPU seconds of this process by stage. Unlike the time of the clock, they do not depend on who else uses the machine."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the seconds of this block to a stage."""
        started = time.process_time()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.process_time() - started

    def wrap(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """A function that does the same and counts its seconds."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.time(stage):
                return work(*args, **kwargs)

        return timed


def image_files(number: int) -> Iterator[FileEntry]:
    """A generated listing of image files."""
    for position in range(number):
        yield FileEntry(f"{FOLDER}/{position // FILES:06d}/{position:010d}.png", SIZE, VERSION)


def parquet_files(number: int) -> Iterator[FileEntry]:
    """A generated listing of Parquet files."""
    return (FileEntry(f"{FOLDER}/{position:06d}.parquet", SIZE, VERSION) for position in range(number))


def footer(rows: int) -> pq.FileMetaData:
    """The footer of a generated Parquet file, whose row groups have so many rows."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, pa.schema([("image", pa.binary()), ("label", pa.uint8())])) as writer:
        for _ in range(GROUPS):
            writer.write_table(pa.table({"image": [b""] * rows, "label": pa.array([0] * rows, pa.uint8())}))
    return pq.read_metadata(io.BytesIO(sink.getvalue()))


def replace_listing(kind: str, units: int, per_unit: int) -> None:
    """List generated files instead of a folder."""
    is_folder, about = storage.is_folder, footer(per_unit)
    listing = partial(image_files, units * per_unit) if kind == "files" else partial(parquet_files, units // GROUPS)
    patch.object(storage, "is_folder", lambda uri: uri == FOLDER or is_folder(uri)).start()
    patch.object(inputs, "walk", lambda _: listing()).start()
    patch.object(tables, "_footer", lambda _: about).start()


def write_nothing(job: Job, result: UnitResult) -> None:
    """An empty file in place of the part of a unit."""
    os.close(os.open(f"{job.out}/{PREDICTIONS}/{part_name(result.unit)}", os.O_CREAT | os.O_WRONLY))


def write_rows(job: Job, result: UnitResult) -> None:
    """The part of a unit, with as many rows as it counts."""
    target, rows = job.columns, result.predicted
    known = {"source": "x", "label": pa.scalar(0, pa.uint8()), "confidence": pa.scalar(1.0, pa.float32())}
    known["digit_likeness"] = known["confidence"]
    columns = [pa.repeat(known[field.name], rows) if field.name in known else pa.nulls(rows, field.type) for field in target]
    write_part(job, result, pa.table(columns, schema=target), schema.QUARANTINE.empty_table())


class NoOpActor:
    """Answers for a unit as an actor of a cluster does."""

    def __init__(self, job: Job, _bundle: str, _device: str) -> None:
        self._job = job
        Path(job.out, PREDICTIONS).mkdir(parents=True, exist_ok=True)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        result = no_op_result(UnitRef(**row))
        write_nothing(self._job, result)
        return {"result": result.to_json(), "status": 0}


def no_op_result(unit: UnitRef) -> UnitResult:
    """What a worker says of a unit whose images are all zeros."""
    return UnitResult(unit.id, predicted=unit.num_inputs, digits=[unit.num_inputs, *[0] * 9])


def replace_workers(watch: Stopwatch, write: Write) -> None:
    """Answer for each unit with a result, after `IN_FLIGHT` others have been sent."""

    def results(refs: Iterator[UnitRef], job: Job) -> Generator[UnitResult]:
        chance = random.Random(0)
        running: list[UnitRef] = []
        Path(job.out, PREDICTIONS).mkdir(parents=True)
        next_ref = watch.wrap("plan", lambda: next(refs, None))
        while (ref := next_ref()) or running:
            running += [ref] if ref else []
            if len(running) > IN_FLIGHT or not ref:
                position = chance.randrange(len(running))
                running[position], running[-1] = running[-1], running[position]
                result = no_op_result(running.pop())
                with watch.time("workers"):
                    write(job, result)
                with watch.time("count"):
                    yield result

    @contextmanager
    def no_work(
        refs: Iterable[UnitRef], job: Job, _bundle: str, _device: str, _number: int, _warn: object
    ) -> Iterator[Generator[UnitResult]]:
        yield results(iter(refs), job)

    patch.object(processes, "scoring", no_work).start()


def time_stages(watch: Stopwatch) -> None:
    """Count the seconds of the steps of a job."""
    for owner, name in (
        (scoring_job, "finished_units"),
        (Planner, "complete"),
        (scoring_job, "sweep"),
        (scoring_job, "commit"),
    ):
        patch.object(owner, name, watch.wrap(name, getattr(owner, name))).start()


def memory(name: str) -> float:
    """Memory of this process in MB: `VmRSS` is what it has now, `VmHWM` its peak."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def replace_actors() -> None:
    """Answer for each unit from an actor of a local Ray cluster."""
    from benchmarks.score import driver  # workers do not know this module as __main__
    from mnist_ray.cluster import actors

    patch.object(actors, "Actor", driver.NoOpActor).start()


def job(
    kind: str, units: int, per_unit: int, scratch: str, write: Write, resume: bool = False, ray: bool = False
) -> dict[str, float]:
    """One job: seconds by stage, and its memory."""
    watch = Stopwatch()
    replace_listing(kind, units, per_unit)
    if ray:
        replace_actors()
    else:
        replace_workers(watch, write)
    time_stages(watch)
    seal.write(f"{scratch}/model", dict.fromkeys(seal.FILES, b""))
    config = ScoreConfig(
        inputs=(FOLDER,),
        model=f"{scratch}/model",
        out=f"{scratch}/out",
        workers="2" if ray else "0",
        probabilities="none",
        unit_rows=per_unit,
        resume=resume,
    )
    before, began = memory("VmRSS"), time.perf_counter()
    with watch.time("total"):
        summary = scoring_job.score(config, Quiet())
    assert (summary["units"], summary["inputs"]) == (units, units * per_unit)
    megabytes, elapsed = memory("VmHWM") - before, time.perf_counter() - began
    with watch.time("verify"):
        planned = dict.fromkeys((ref.id for ref in load_plan(config.out).refs(config.out)), 0)
        assert fingerprint(planned) == summary["plan"]
        assert not strays(config.out, planned)
    return {**watch.seconds, "elapsed": elapsed, "MB": megabytes}


def measure(kind: str, units: int, per_unit: int, resume: bool, ray: bool) -> dict[str, float]:
    """The measurements of one job. With `resume`, another job has written all parts before; with `ray`, it runs on Ray."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        if resume:
            with context.Pool(1) as pool:
                pool.apply(job, (kind, units, per_unit, scratch, write_rows))
        with context.Pool(1) as pool:
            return pool.apply(job, (kind, units, per_unit, scratch, write_nothing, resume, ray))


def report(units: int, found: dict[str, float]) -> None:
    """Print one line: CPU microseconds per unit by stage, without those of the no-op units, and memory."""
    others = ("workers", "total", "verify", "elapsed", "MB")
    stages = ", ".join(f"{name} {value / units * 1e6:.1f}" for name, value in found.items() if name not in others)
    driver = found["total"] - found.get("workers", 0.0)
    print(
        f"{units:9,} units: {driver:.1f} s of CPU, {driver / units * 1e6:.1f} us per unit ({stages}); {found['elapsed']:.0f} s "
        f"in all; the plan in verify {found['verify'] / units * 1e6:.1f} us per unit; "
        f"{found['MB']:.0f} MB, {found['MB'] / units * 1e6:.0f} MB per million units",
        flush=True,
    )


def main() -> None:
    """Run a job of each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("files", "rows"))
    parser.add_argument("--units", default="10000,100000,1000000", help="sizes, separated by commas")
    parser.add_argument("--inputs", type=int, default=10, help="image files or rows of each unit")
    parser.add_argument("--resume", action="store_true", help="measure the job that finds all parts of another job")
    parser.add_argument("--ray", action="store_true", help="send the units to no-op actors on Ray")
    parser.add_argument("--json", help="file for all measurements")
    args = parser.parse_args()
    measured: dict[str, dict[str, float]] = {}
    print(machine())
    for units in map(int, args.units.split(",")):
        measured[str(units)] = measure(args.kind, units, args.inputs, args.resume, args.ray)
        report(units, measured[str(units)])
        if args.json:
            Path(args.json).write_text(json.dumps({**vars(args), "machine": machine(), "measured": measured}, indent=1))


if __name__ == "__main__":
    main()
