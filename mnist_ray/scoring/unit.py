"""The work on one unit: read, decode, predict, write its part."""

import time
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mnist_ray.data.digits import CLASSES, UNLIKE, Predict, Predictions
from mnist_ray.data.images import Digits
from mnist_ray.data.statistics import confidence_counts
from mnist_ray.data.traits import SAMPLE, count_traits
from mnist_ray.scoring import schema
from mnist_ray.scoring.job import Job, UnitResult
from mnist_ray.scoring.parts import write_part
from mnist_ray.scoring.plan import WorkUnit
from mnist_ray.scoring.read import Chunk, read_unit


def score_unit(unit: WorkUnit, job: Job, predict: Predict, crashed: Collection[int] = ()) -> UnitResult:
    """Score one unit and write its part. Scoring it again writes the same rows to the same files. Raises StorageError.

    The inputs at the positions `crashed` are not read, but quarantined.
    """
    result = UnitResult(unit.id)
    predicted, quarantined = zip(*score_chunks(unit, job, predict, result, crashed), strict=True)
    started = time.perf_counter()
    write_part(job, result, pa.concat_tables(predicted), pa.concat_tables(quarantined))
    result.spend({"write": time.perf_counter() - started})
    return result


def score_chunks(
    unit: WorkUnit, job: Job, predict: Predict, result: UnitResult, crashed: Collection[int] = ()
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The prediction rows and the quarantine rows of a unit, chunk by chunk. Adds them to the counts. Raises StorageError."""
    for chunk in read_unit(unit, job, crashed):
        result.spend({"read": chunk.read_s, "decode": chunk.decode_s})
        result.input_bytes += chunk.num_bytes
        yield _predict(chunk, job, predict, result), _reject(chunk, result)


def _predict(chunk: Chunk, job: Job, predict: Predict, result: UnitResult) -> pa.Table:
    """The prediction rows of the chunk's digits. Adds them to the counts."""
    digits, keys = chunk.digits, chunk.keys
    if chunk.rejected:
        good = np.delete(np.arange(len(digits)), list(chunk.rejected))
        digits, keys = digits[good], keys.take(pa.array(good))
    started = time.perf_counter()
    predictions = predict(digits)
    result.spend({"predict": time.perf_counter() - started})
    unlike = predictions.likeness < UNLIKE
    review = unlike if job.review_below is None else unlike | (predictions.confidence <= job.review_below)
    _count(predictions, keys["truth"], digits, result)
    result.unlike += int(unlike.sum())
    result.needs_review += int(review.sum())
    columns = {"label": predictions.labels, "confidence": predictions.confidence, "digit_likeness": predictions.likeness}
    columns |= {"needs_review": review, **_probabilities(predictions, job.probabilities)}
    target = job.columns
    return pa.table([columns[field.name] if field.name in columns else keys[field.name] for field in target], schema=target)


def _probabilities(predictions: Predictions, number: int) -> dict[str, pa.Array]:
    """All probabilities; or the labels and probabilities of the `number` most probable classes, the most probable first."""
    if number == len(CLASSES):
        return {"probabilities": _lists(predictions.probabilities)}
    best = np.argsort(-predictions.probabilities, axis=1, kind="stable")[:, :number]
    values = np.take_along_axis(predictions.probabilities, best, axis=1)
    return {"top_labels": _lists(best.astype(np.uint8)), "top_probabilities": _lists(values)} if number else {}


def _lists(values: NDArray[Any]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _count(predictions: Predictions, truth: pa.ChunkedArray, digits: Digits, result: UnitResult) -> None:
    known = truth.is_valid().to_numpy()
    cells = truth.drop_null().to_numpy().astype(np.int64) * len(CLASSES) + predictions.labels[known]
    counts = UnitResult(result.unit, predicted=len(predictions.labels))
    counts.digits = np.bincount(predictions.labels, minlength=len(CLASSES)).tolist()
    counts.confidences = confidence_counts(predictions.confidence)
    counts.traits = count_traits(digits[:: max(1, -(-len(digits) // SAMPLE))])
    counts.confusion = np.bincount(cells, minlength=len(CLASSES) ** 2).tolist()
    result.add(counts)


def _reject(chunk: Chunk, result: UnitResult) -> pa.Table:
    """The quarantine rows of the chunk's rejected inputs. Adds them to the counts."""
    reasons = [str(rejection.reason) for rejection in chunk.rejected.values()]
    details = [rejection.detail for rejection in chunk.rejected.values()]
    result.quarantined += len(reasons)
    result.reasons.update(reasons)
    keys = chunk.keys.take(pa.array(chunk.rejected, pa.int64()))
    return pa.table([keys["source"], keys["row"], reasons, details, keys["size_bytes"]], schema=schema.QUARANTINE)
