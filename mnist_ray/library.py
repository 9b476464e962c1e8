"""The functions of `import mnist_ray`: train, score, load_model and read_table.

Each imports what it needs when it is called. So reading a table imports neither PyTorch nor Ray.
"""

import io
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from mnist_ray.config import Device, Precision, ScoreConfig, ScoringPrecision, TrainConfig
from mnist_ray.console import Console, Quiet
from mnist_ray.errors import AccountingError, DataError, UsageError, first_line
from mnist_ray.flags import expand_home, require, require_working_directory
from mnist_ray.recipes import RecipeName
from mnist_ray.run.signals import raising

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc
    from PIL.Image import Image

    from mnist_ray.data.containers import Rejection
    from mnist_ray.data.digits import Predict, Predictions
    from mnist_ray.data.images import Grey

Path: TypeAlias = str | os.PathLike[str]
"""A local path, or a URI such as `s3://bucket/folder`."""
OneImage: TypeAlias = Union[Path, NDArray[Any], "Image"]
"""An image file, an array [H, W] or [H, W, 1|3|4] (grey, RGB, RGBA), or a PIL image."""
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Modes of PIL images that a PNG file can hold."""
_READERS = 16
"""Files of a table that are read at once."""


def _begin() -> None:
    """Prepare a call. Raises UsageError if there is no working directory."""
    from mnist_ray.data import storage

    require_working_directory()
    storage.forget_stores()


def _plain(**values: Any) -> dict[str, Any]:
    """Arguments whose NumPy numbers, as of `np.arange`, are replaced by Python's."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def _text(path: Path) -> str:
    """A path or URI as text. Raises UsageError for anything else, such as None."""
    require(isinstance(path, str | os.PathLike), f"{path!r}: expected a path or a URI")
    return expand_home(os.fspath(path))


@raising(signal.SIGINT, KeyboardInterrupt)
def train(
    *,
    out: Path = "",
    data: Path = "auto",
    recipe: RecipeName = "standard",
    workers: int | str = 2,
    device: Device = "auto",
    epochs: float | None = None,
    global_batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    label_smoothing: float | None = None,
    augment: bool | None = None,
    precision: Precision = "auto",
    seconds: float = 0.0,
    patience: int = 0,
    seed: int = 0,
    checkpoint_every: str = "1",
    address: str = "",
    show_progress: bool = False,
) -> dict[str, Any]:
    """Train a digit classifier, or continue the run in `out`, and return its metrics.

    The arguments are the flags of `mnist-ray train`; `mnist_ray.config.TrainConfig` explains each. The metrics are the content
    of `metrics.json` in the run directory: accuracy from 0 to 1, loss in nats per image, seconds, and more. `show_progress`
    prints what the command prints. A run that is finished already is not trained again.

    Raises `mnist_ray.errors.MnistRayError`: UsageError for a wrong argument, DataError for missing or damaged data, OutputError
    if `out` holds another run, ClusterError if Ray cannot be reached, StorageError if storage fails. Raises DefectError for an
    unexpected exception on a worker of Ray.

    >>> metrics = mnist_ray.train(out="runs/digits", data="mnist5k", recipe="fast", workers=0, epochs=3)
    >>> metrics["accuracy"] > 0.9
    True
    """
    from mnist_ray.train_job import train as run_training

    _begin()
    given = _plain(
        out=_text(out),
        data=_text(data),
        recipe=recipe,
        workers=str(workers),
        device=device,
        epochs=epochs,
        global_batch_size=global_batch_size,
        lr=lr,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        augment=augment,
        precision=precision,
        seconds=seconds,
        patience=patience,
        seed=seed,
        checkpoint_every=str(checkpoint_every),
        address=address,
    )
    return run_training(TrainConfig(**given), Console() if show_progress else Quiet())


@raising(signal.SIGINT, KeyboardInterrupt)
def score(
    inputs: Path | Sequence[Path],
    *,
    model: Path,
    out: Path,
    workers: int | str = "auto",
    processes: int = 0,
    device: Device = "auto",
    gpus_per_actor: float = 0.0,
    resume: bool = False,
    extend: bool = False,
    rescore_changed: bool = False,
    overwrite: bool = False,
    keep: str = "",
    image_column: str = "",
    truth: str = "auto",
    probabilities: str = "all",
    target_error: str = "",
    precision: ScoringPrecision = "float32",
    max_quarantined: int | str = "",
    unit_rows: int = 0,
    sample: int = 0,
    shard: str = "",
    address: str = "",
    show_progress: bool = False,
) -> dict[str, Any]:
    """Predict the digit in each image of `inputs`, write a prediction table to the folder `out`, and return its summary.

    `inputs` is one folder, glob, image file, Parquet file or manifest, or several of them. The other arguments are the flags of
    `mnist-ray score`; `mnist_ray.config.ScoreConfig` explains each. The summary is the content of `summary.json` in the output
    folder: the counts `inputs`, `predicted` and `quarantined`, the speed, and more. `show_progress` prints what the command
    prints. Images that cannot be read are listed in the quarantine table and raise no error.

    In a script, call it below `if __name__ == "__main__":`, because it starts processes.

    Raises `mnist_ray.errors.MnistRayError`: UsageError for a wrong argument, DataError if there is nothing to score,
    NothingScoredError if no input can be read, QuarantineError if more cannot be read than `max_quarantined` allows, ModelError
    for a damaged model, OutputError if `out` holds another job, ClusterError if Ray cannot be reached or a process was killed,
    StorageError if storage fails.

    >>> summary = mnist_ray.score("scans", model="runs/digits", out="tables/scans")
    >>> summary["inputs"] == summary["predicted"] + summary["quarantined"]
    True
    """
    from mnist_ray.score_job import score as run_scoring

    _begin()
    given = _plain(
        inputs=tuple(map(_text, inputs if isinstance(inputs, Iterable) and not isinstance(inputs, str) else [inputs])),
        model=_text(model),
        out=_text(out),
        workers=str(workers),
        processes=processes,
        device=device,
        gpus_per_actor=gpus_per_actor,
        resume=resume,
        extend=extend,
        rescore_changed=rescore_changed,
        overwrite=overwrite,
        keep=keep,
        image_column=image_column,
        truth=truth,
        probabilities=probabilities,
        target_error=target_error,
        precision=precision,
        max_quarantined=str(max_quarantined),
        unit_rows=unit_rows,
        sample=sample,
        shard=shard,
        address=address,
    )
    return run_scoring(ScoreConfig(**given), Console() if show_progress else Quiet())


@dataclass(frozen=True)
class Model:
    """A trained model that is ready to predict in this process."""

    predictor: "Predict"
    """The model as a function of digits, uint8[N, 28, 28], light on dark as in MNIST."""
    card: dict[str, Any]
    """The description in the bundle: input, classes, training data, accuracy."""
    digest: str
    """SHA-256 that identifies the bundle, as 64 hexadecimal characters."""

    def predict(self, images: OneImage | Iterable[OneImage]) -> "Predictions":
        """Predict the digit in each of N images.

        `images` is one image or several: paths or URIs of image files, PIL images, or arrays of any size. An array is [H, W],
        [H, W, 1], [H, W, 3] (RGB), [H, W, 4] (RGBA), or a stack of such arrays. Its values are uint8, uint16, other integers
        from 0 to 255, floats from 0 to 1 or from 0 to 255, or truth values. All images go through the preprocessing rule of
        `mnist_ray/data/images.py`: an image that looks like MNIST is used unchanged. Other images are inverted if they are dark
        on light, cut to their ink, scaled and centred.

        Returns `labels` uint8[N], `confidence` float32[N] (the probability of the label) and `probabilities` float32[N, C], one
        for each class.
        Raises DataError that names the first image that cannot be read.

        >>> model = mnist_ray.load_model("runs/digits")
        >>> model.predict(["seven.png"]).labels.tolist()
        [7]
        """
        from mnist_ray.data.images import normalise, to_digits

        if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 3 and not _is_one_image(images):
            return self.predictor(to_digits(images))
        items = _several(images)
        digits, rejected = normalise(_decoded(items))
        for position, rejection in rejected.items():
            image = items[position]
            name = os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {position}"
            raise DataError(f"{name}: {rejection.reason}: {rejection.detail}")
        return self.predictor(digits)


def _is_one_image(image: NDArray[Any]) -> bool:
    """Whether a three-dimensional array is one image, [H, W, 1|3|4], and not a stack of grey images."""
    return image.shape[-1] in (1, 3, 4)


def _several(images: OneImage | Iterable[OneImage]) -> list[OneImage]:
    """The images as a list, also if there is only one."""
    if isinstance(images, np.ndarray):
        one = images.ndim < 3 or (images.ndim == 3 and _is_one_image(images))
        return [images] if one else list(images)
    return list(images) if isinstance(images, Iterable) and not isinstance(images, str) else [images]


def _decoded(images: Iterable[OneImage]) -> Iterator["Grey | Rejection"]:
    """The grey levels of each image, uint8[H, W], or a Rejection. Raises StorageError."""
    from PIL.Image import Image

    from mnist_ray.data.bulk import read_many
    from mnist_ray.data.containers import MAX_BYTES
    from mnist_ray.data.images import decode
    from mnist_ray.scoring.read import to_grey

    contents = read_many([_text(image) for image in images if isinstance(image, str | os.PathLike)], MAX_BYTES)
    for image in images:
        if isinstance(image, str | os.PathLike):
            yield to_grey(os.fspath(image), next(contents))
        elif isinstance(image, Image):
            yield decode(_to_png(image))
        else:
            yield _array_to_grey(np.asarray(image))


def _to_png(image: "Image") -> bytes:
    """A PIL image as a PNG file, so that transparency, palettes and 16 bits are treated as in an image file."""
    file = io.BytesIO()
    (image if image.mode in _PNG_MODES else image.convert("RGB")).save(file, "PNG")
    return file.getvalue()


def _array_to_grey(pixels: NDArray[Any]) -> "Grey | Rejection":
    """An array [H, W] or [H, W, 1|3|4] (RGB order) as grey levels."""
    from mnist_ray.data.containers import Reason, Rejection
    from mnist_ray.data.images import grey_levels

    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if not pixels.size or pixels.ndim not in (2, 3) or channels not in (1, 3, 4):
        return Rejection(Reason.WRONG_SHAPE, f"has shape {pixels.shape}; expected [H, W], [H, W, 3] or [H, W, 4]")
    if pixels.dtype == bool:
        pixels = pixels * np.uint8(255)
    elif pixels.dtype.kind in "iu" and pixels.dtype != np.uint16:  # pandas and lists of Python's numbers give int64
        if pixels.min() < 0 or pixels.max() > 255:
            return Rejection(Reason.BAD_PIXELS, f"pixels of type {pixels.dtype} outside 0 to 255")
        pixels = pixels.astype(np.uint8)
    return grey_levels(pixels if channels == 1 else pixels[..., [2, 1, 0, 3][:channels]])


def load_model(model: Path, *, device: Device = "auto") -> Model:
    """Load a trained model from a run directory or a bundle folder, a path or URI, and run its self-test on `device`.

    Raises ModelError if it is missing, damaged or fails the self-test, UsageError if there is no such device, and StorageError
    if storage fails.

    >>> model = mnist_ray.load_model("runs/digits")
    >>> model.card["accuracy"]["num_images"]
    500
    """
    from mnist_ray.artifact import bundle
    from mnist_ray.artifact.predictor import Predictor, pick_device, usual_torch

    _begin()
    with usual_torch():
        loaded = bundle.load(_text(model))
        return Model(Predictor.ready(loaded, pick_device(device)), loaded.card, loaded.digest)


def read_table(
    out: Path,
    columns: Sequence[str] | None = None,
    where: "pc.Expression | list[Any] | None" = None,
    *,
    quarantine: bool = False,
) -> "pd.DataFrame":
    """Read the prediction table in the output folder of `score` (path or URI), or its quarantine table, as a pandas DataFrame.

    `columns` are the columns to read; all by default. `where` selects rows: an expression of pyarrow, or its list of tuples
    such as `[("confidence", "<", 0.5)]`. Only the columns and row groups that are needed are read. The rows have no order
    over the whole table. As everywhere in pandas, an integer column with missing values becomes float64. A part that is damaged
    where it is read, or that is not the one of its unit, is an error; `mnist-ray verify` finds every change.

    Raises OutputError if the folder holds no scoring job, AccountingError if the job is not finished or its table is damaged,
    UsageError for an unknown column or a wrong filter, and StorageError if storage fails.

    >>> import pyarrow.compute as pc
    >>> table = mnist_ray.read_table("tables/scans", columns=["source", "label"], where=pc.field("confidence") < 0.9)
    >>> list(table.columns)
    ['source', 'label']
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mnist_ray.data import storage
    from mnist_ray.scoring.parts import DAMAGE, PREDICTIONS, QUARANTINE, open_part, part_name

    _begin()
    folder = storage.absolute(_text(out))
    schema, parts = _committed(folder, quarantine)
    expression = pq.filters_to_expression(where) if isinstance(where, list) else where
    empty = _select(schema.empty_table(), [columns] if isinstance(columns, str) else columns, expression)

    def read(unit: str) -> pa.Table:
        uri = storage.join(folder, QUARANTINE if quarantine else PREDICTIONS, part_name(unit))
        try:
            with storage.open_file(uri) as stream:
                part = open_part(stream, unit, parts[unit])
                return part.to_table(schema, empty.column_names, expression, use_threads=False)
        except MemoryError:  # pyarrow's is an ArrowException, too
            raise
        except DAMAGE as error:
            raise AccountingError(f"{uri}: cannot be read ({error}); check the table with mnist-ray verify {folder}") from None

    with ThreadPoolExecutor(_READERS) as pool:
        return pa.concat_tables([empty, *pool.map(read, parts)]).to_pandas()


def _committed(out: str, quarantine: bool) -> "tuple[pa.Schema, dict[str, int]]":
    """The schema of a finished job's table, and how many rows each unit has in it. Raises OutputError or AccountingError."""
    from mnist_ray.scoring import schema
    from mnist_ray.scoring.commit import load_commit
    from mnist_ray.scoring.job import Job
    from mnist_ray.scoring.verify import complete_plan

    job = Job.of(complete_plan(out), out)
    counts = load_commit(out)["parts"]
    rows = {unit: rejected if quarantine else predicted for unit, (predicted, rejected) in counts.items()}
    return schema.QUARANTINE if quarantine else job.columns, {unit: number for unit, number in rows.items() if number}


def _select(table: "pa.Table", columns: Sequence[str] | None, where: "pc.Expression | None") -> "pa.Table":
    """Columns and rows of a table. Raises UsageError if it lacks a column, or `where` does not fit its columns."""
    import pyarrow as pa

    if unknown := sorted(set(columns or ()) - set(table.column_names)):
        raise UsageError(f"columns {', '.join(unknown)}: the table has only {', '.join(table.column_names)}")
    try:
        selected = table if where is None else table.filter(where)
    except pa.ArrowException as error:
        raise UsageError(f"where: does not fit the columns {', '.join(table.column_names)}: {first_line(error)}") from None
    return selected if columns is None else selected.select(list(columns))
