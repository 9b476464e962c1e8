"""One unit of work: its inputs to one part of the prediction table, and one of the quarantine where something was rejected."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnist_ray.data import storage
from mnist_ray.data.containers import Rejection
from mnist_ray.data.images import SIDE
from mnist_ray.data.predictions import Predict, Predictions
from mnist_ray.scoring import schema
from mnist_ray.scoring.job import Job, UnitResult, part_metadata
from mnist_ray.scoring.plan import WorkUnit
from mnist_ray.scoring.read import Chunk, read_unit


def part_name(unit_id: str) -> str:
    """The file name of a unit's part, in both tables."""
    return f"part-{unit_id}.parquet"


def score_unit(unit: WorkUnit, job: Job, predict: Predict) -> UnitResult:
    """Read, decode, predict and write one unit. Doing it again writes the same rows under the same names."""
    result = UnitResult(unit.id)
    predicted: list[pa.Table] = []
    quarantined: list[pa.Table] = []
    for chunk in read_unit(unit, job):
        result.spend({"read": chunk.read_s, "decode": chunk.decode_s})
        result.input_bytes += chunk.num_bytes
        predicted.append(_predict(chunk, job, predict, result))
        quarantined.append(_reject(chunk, result))
    started = time.perf_counter()
    _write(unit, job, result, predicted, quarantined)
    result.spend({"write": time.perf_counter() - started})
    return result


def _predict(chunk: Chunk, job: Job, predict: Predict, result: UnitResult) -> pa.Table:
    rows = [i for i, image in enumerate(chunk.images) if not isinstance(image, Rejection)]
    digits = np.array([chunk.images[i] for i in rows], np.uint8).reshape(-1, SIDE, SIDE)
    started = time.perf_counter()
    predictions = predict(digits)
    result.spend({"predict": time.perf_counter() - started})
    keys = chunk.keys.take(pa.array(rows, pa.int64()))
    _count(predictions, keys["truth"], result)
    answer = {
        "label": pa.array(predictions.label),
        "confidence": pa.array(predictions.confidence),
        "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(predictions.probabilities.reshape(-1)), 10),
    }
    target = schema.predictions(job.kept)
    return pa.table([answer[field.name] if field.name in answer else keys[field.name] for field in target], schema=target)


def _count(predictions: Predictions, truth: pa.ChunkedArray, result: UnitResult) -> None:
    right = pc.equal(truth, pa.array(predictions.label))
    result.predicted += len(predictions.label)
    result.digits = (np.bincount(predictions.label, minlength=10) + result.digits).tolist()
    result.with_truth += len(right) - right.null_count
    result.correct += pc.sum(right).as_py() or 0


def _reject(chunk: Chunk, result: UnitResult) -> pa.Table:
    rejected = [(i, image) for i, image in enumerate(chunk.images) if isinstance(image, Rejection)]
    result.quarantined += len(rejected)
    result.reasons.update(str(rejection.reason) for _, rejection in rejected)
    keys = chunk.keys.take(pa.array([i for i, _ in rejected], pa.int64()))
    values = {
        "source": keys["source"],
        "row": keys["row"],
        "reason": [str(rejection.reason) for _, rejection in rejected],
        "detail": [rejection.detail for _, rejection in rejected],
        "size_bytes": keys["size_bytes"],
    }
    return pa.table(values, schema=schema.quarantine())


def _write(unit: WorkUnit, job: Job, result: UnitResult, predicted: list[pa.Table], quarantined: list[pa.Table]) -> None:
    """The quarantine first: a unit is done once its part of the predictions is there, even one without rows."""
    metadata = part_metadata(job, result)
    place = storage.join(job.out, "quarantine", part_name(unit.id))
    if result.quarantined:
        _write_part(place, pa.concat_tables(quarantined), metadata)
    else:  # of an attempt that could not read what this one could
        storage.delete(place)
    _write_part(storage.join(job.out, "predictions", part_name(unit.id)), pa.concat_tables(predicted), metadata)


def _write_part(uri: str, table: pa.Table, metadata: dict[bytes, str]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
    storage.write(uri, sink.getvalue().to_pybytes())
