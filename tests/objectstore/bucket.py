"""A bucket of the test server, as tests see it: directly, not through the proxy."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
from botocore.config import Config

from tests.objectstore.proxy import Proxy
from tests.objectstore.server import ACCESS_KEY, REGION, SECRET_KEY

THREADS = 16


def connect(endpoint: str) -> Any:
    """A client of the server."""
    # Debian's Ceph does not know the checksums that boto3 adds by default.
    config = Config(request_checksum_calculation="when_required", max_pool_connections=THREADS, s3={"addressing_style": "path"})
    keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
    return boto3.client("s3", endpoint_url=endpoint, region_name=REGION, config=config, **keys)


@dataclass(frozen=True)
class Bucket:
    """A bucket that exists, and the proxy through which the jobs see it."""

    name: str
    client: Any
    proxy: Proxy

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, data: bytes) -> str:
        """Store an object; returns its URI."""
        self.client.put_object(Bucket=self.name, Key=key, Body=data)
        return f"{self.uri}/{key}"

    def upload(self, folder: Path, prefix: str) -> str:
        """Store all files of a folder; returns the URI of the prefix."""
        files = {f"{prefix}/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self.put, files, files.values()))
        return f"{self.uri}/{prefix}"

    def get(self, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return data

    def json(self, key: str) -> Any:
        return json.loads(self.get(key))

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)

    def rows(self, out: str, table: str = "predictions") -> list[dict[str, Any]]:
        """The rows of a table of a scoring job, by source and row."""
        parts = [pq.read_table(io.BytesIO(self.get(key))) for key in self.keys(f"{out}/{table}/")]
        found = pa.concat_tables(parts).to_pylist() if parts else []
        return sorted(found, key=lambda row: (row["source"], row["row"] or 0))
