"""One S3 server for the session, a proxy in front of it, and a bucket for each test."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mnist_ray.data import datasets, object_store, patience
from mnist_ray.data.digits import Splits
from mnist_ray.data.images import encode_png
from mnist_ray.run import owner, processes
from tests.conftest import thread_pool
from tests.objectstore.bucket import Bucket, connect
from tests.objectstore.proxy import Proxy
from tests.objectstore.server import ACCESS_KEY, REGION, SECRET_KEY, s3_server


@pytest.fixture(scope="session")
def proxy() -> Iterator[Proxy]:
    """The proxy in front of the session's S3 server."""
    with s3_server() as endpoint:
        proxy = Proxy(endpoint)
        yield proxy
        proxy.stop()


NewBucket = Callable[[], Bucket]


@pytest.fixture(scope="session")
def new_bucket(proxy: Proxy) -> Iterator[NewBucket]:
    """A function that makes a bucket."""
    client = connect(f"http://{proxy.upstream}")

    def make() -> Bucket:
        bucket = Bucket(f"test-{uuid.uuid4().hex}", client, proxy)
        client.create_bucket(Bucket=bucket.name)
        return bucket

    yield make
    client.close()


@pytest.fixture(scope="session")
def s3_environment(proxy: Proxy) -> dict[str, str]:
    """The standard variables that lead to the proxy."""
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": REGION}
    return {"AWS_ENDPOINT_URL": proxy.url, **keys}


@pytest.fixture
def bucket(
    new_bucket: NewBucket, s3_environment: dict[str, str], no_charts: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bucket]:
    """An empty bucket, and an environment that leads to it. The proxy works at the start and at the end."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    bucket = new_bucket()
    yield bucket
    bucket.proxy.revive()


class Inputs(NamedTuple):
    """What jobs read from a bucket that no test changes, as URIs."""

    bucket: Bucket
    digits: str
    """A folder of PNG files, one subfolder per class."""
    tables: str
    """A folder of Parquet files."""
    idx: str
    """A folder of IDX files."""
    model: str
    """A model bundle."""
    num_digits: int
    num_rows: int


@pytest.fixture(scope="session")
def inputs(new_bucket: NewBucket, mnist5k: Splits, small_idx: Path, run_dir: Path, tmp_path_factory: Any) -> Inputs:
    """Digits, tables, IDX files and a model in a bucket."""
    bucket, folder = new_bucket(), tmp_path_factory.mktemp("inputs")
    digits = mnist5k.test.take(np.arange(0, 500, 4))
    datasets.write_folder(digits, str(folder / "digits"))
    (folder / "tables").mkdir()
    for name in ("a", "b", "c"):
        table = pa.table({"image": [encode_png(image) for image in digits.images], "label": digits.labels})
        pq.write_table(table, folder / "tables" / f"{name}.parquet", row_group_size=40)
    sources = {"digits": folder / "digits", "tables": folder / "tables", "idx": small_idx, "model": run_dir / "model"}
    uris = {name: bucket.upload(source, name) for name, source in sources.items()}
    return Inputs(bucket, **uris, num_digits=len(digits), num_rows=3 * len(digits))


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scoring without Ray uses threads of this process: they start at once, and see what a test changes."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(processes, "ProcessPoolExecutor", thread_pool(2))
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, storage may fail for 1 s, a request may take 1 s, and an owner is dead if it is silent for 1 s."""
    monkeypatch.setattr(patience, "PATIENCE_S", 1.0)
    monkeypatch.setattr(object_store, "REQUEST_S", 1)
    monkeypatch.setattr(owner, "BEAT_S", 0.2)
    monkeypatch.setattr(owner, "SILENT_S", 1.0)


@pytest.fixture
def short_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, a request may take 1 s, and pauses are short."""
    monkeypatch.setattr(object_store, "REQUEST_S", 1)
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 0.4)
