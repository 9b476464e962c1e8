"""Other programs that score a folder of digits with the same network and write a table of predictions.

    python -m benchmarks.score.rivals NAME INPUTS MODEL OUT

INPUTS has one subfolder per digit. Marks go to the folder `OUT.marks`. Each program is written from scratch after the
published description of its library. `daft` needs the package daft.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.score.marks import Marks
from mnist_ray.artifact.bundle import load

BATCH = 256


class Network:
    """The network as PyTorch users usually run it: eager, in batches."""

    def __init__(self, model: str, out: str) -> None:
        self._model, self._mark = load(model).model, Marks(f"{out}.marks")

    @torch.inference_mode()
    def __call__(self, digits: torch.Tensor) -> dict[str, Any]:
        """The columns label, confidence and probabilities of digits uint8[N, 28, 28]."""
        probabilities = torch.softmax(self._model(digits), 1)
        confidence, label = probabilities.max(1)
        self._mark(len(digits))
        return {"label": label.numpy(), "confidence": confidence.numpy(), "probabilities": list(probabilities.numpy())}


def dataloader(inputs: str, model: str, out: str) -> None:
    """torchvision's ImageFolder, a DataLoader with two workers, and pandas to write Parquet."""
    import pandas as pd
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(inputs, transforms.Compose([transforms.Grayscale(), transforms.PILToTensor()]))
    network = Network(model, out)
    frames = [
        pd.DataFrame({**network(images[:, 0]), "truth": truth.numpy()})
        for images, truth in DataLoader(dataset, BATCH, num_workers=2)
    ]
    table = pd.concat(frames, ignore_index=True)
    table.insert(0, "source", [path for path, _ in dataset.samples])
    Path(out).mkdir()
    table.to_parquet(f"{out}/predictions.parquet")


def _grey(data: bytes) -> np.ndarray[Any, Any]:
    """The grey levels of an image file, uint8[H, W]."""
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))


class _OnRay:
    """A Ray Data actor; `image` converts one value of the image column to grey levels."""

    def __init__(self, model: str, out: str, image: Callable[[Any], Any]) -> None:
        self._network, self._image = Network(model, out), image

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        column = batch["image"] if "image" in batch else batch["bytes"]
        digits = np.stack([self._image(value) for value in column])
        return {"source": batch["path"], **self._network(torch.from_numpy(digits))}


def _ray(dataset: Any, model: str, out: str, image: Callable[[Any], Any]) -> None:
    results = dataset.map_batches(_OnRay, fn_constructor_args=(model, out, image), batch_size=BATCH, concurrency=1, num_cpus=1)
    results.write_parquet(out)


def ray_images(inputs: str, model: str, out: str) -> None:
    """Ray's documented pattern: read_images, map_batches, write_parquet."""
    import ray

    ray.init(address="local", log_to_driver=False)
    _ray(ray.data.read_images(inputs, mode="L", include_paths=True), model, out, np.asarray)


def ray_binary(inputs: str, model: str, out: str) -> None:
    """The same pattern with read_binary_files; the actor decodes. It needs four CPUs: with fewer, it waits forever."""
    import ray

    ray.init(address="local", log_to_driver=False, num_cpus=4)
    _ray(ray.data.read_binary_files(inputs, include_paths=True), model, out, _grey)


def ray_download(inputs: str, model: str, out: str) -> None:
    """The same pattern with a table of paths and the download expression."""
    import ray
    from ray.data.expressions import download

    ray.init(address="local", log_to_driver=False, num_cpus=4)
    paths = pa.table({"path": sorted(str(path) for path in Path(inputs).rglob("*.png"))})
    _ray(ray.data.from_arrow(paths).with_column("bytes", download("path")), model, out, _grey)


def daft(inputs: str, model: str, out: str) -> None:
    """Daft: glob, download, decode, and a user-defined function over batches."""
    import daft
    from daft import col

    network = Network(model, out)
    answer_type = daft.DataType.struct({"label": daft.DataType.int64(), "confidence": daft.DataType.float32()})

    @daft.udf(return_dtype=answer_type)  # type: ignore[untyped-decorator]
    def predict(images: Any) -> list[dict[str, Any]]:
        digits = torch.from_numpy(np.stack([np.asarray(image).reshape(28, 28) for image in images.to_pylist()]))
        answer = network(digits)
        pairs = zip(answer["label"], answer["confidence"], strict=True)
        return [{"label": int(label), "confidence": float(confidence)} for label, confidence in pairs]

    frame = daft.from_glob_path(f"{inputs}/**/*.png")
    frame = frame.with_column("image", col("path").url.download().image.decode(mode="L"))
    frame.with_column("answer", predict(col("image"))).select("path", "answer").write_parquet(out)


def tuned(inputs: str, model: str, out: str) -> None:
    """The practical limit: threads read, decode with OpenCV, predict with the traced network and write, without checks."""
    import cv2

    from mnist_ray.artifact.predictor import Predictor

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    predict, mark = Predictor.ready(load(model), torch.device("cpu")), Marks(f"{out}.marks")
    Path(out).mkdir()
    numbers = count()

    def score(paths: list[str]) -> None:
        digits = np.empty((len(paths), 28, 28), np.uint8)
        for position, path in enumerate(paths):
            handle = os.open(path, os.O_RDONLY)
            data = np.frombuffer(os.read(handle, 1 << 16), np.uint8)
            digits[position] = np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))
            os.close(handle)
        answer = predict(digits)
        probabilities = pa.FixedSizeListArray.from_arrays(pa.array(answer.probabilities.reshape(-1)), 10)
        truth = [int(path.rsplit("/", 2)[1]) for path in paths]
        columns = {"source": paths, "label": answer.labels, "confidence": answer.confidence, "probabilities": probabilities}
        pq.write_table(pa.table({**columns, "truth": truth}), f"{out}/{next(numbers)}.parquet", compression="zstd")
        mark(len(paths))

    paths = [entry.path for folder in sorted(Path(inputs).iterdir()) for entry in os.scandir(folder)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(score, (paths[start : start + 4096] for start in range(0, len(paths), 4096))))


RIVALS = {rival.__name__: rival for rival in (dataloader, ray_images, ray_binary, ray_download, daft, tuned)}

if __name__ == "__main__":
    RIVALS[sys.argv[1]](*sys.argv[2:])
