"""A bucket with very many keys."""

import asyncio
import subprocess
import sys

import pytest
from obstore import put_async
from obstore.store import S3Store

from mnist_ray.data.listing import walk
from tests.conftest import ROOT
from tests.objectstore import proxy as px
from tests.objectstore.bucket import Bucket
from tests.objectstore.server import ACCESS_KEY, REGION, SECRET_KEY, is_ceph

LIST = """
import itertools, re, sys
from pathlib import Path
from mnist_ray.data.listing import walk

def peak():  # `ru_maxrss` starts with that of the process that starts this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

entries = walk(sys.argv[1])
first = list(itertools.islice(entries, 5000))[-1].uri
early = peak()
last = first
count = 5000
for entry in entries:
    assert last < entry.uri and entry.size == 1
    last = entry.uri
    count += 1
print(count, peak() - early)
"""
"""Prints the number of files below a folder, and by how many KiB the memory grew after the first 5,000 of them."""


def _direct(bucket: Bucket) -> S3Store:
    """The bucket without the proxy."""
    return S3Store(
        bucket.name,
        endpoint=f"http://{bucket.proxy.upstream}",
        region=REGION,
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        client_options={"allow_http": True},
    )


async def _fill(store: S3Store, number: int) -> None:
    for start in range(0, number, 500):
        names = [f"in/{position // 1000:04d}/{position:07d}.png" for position in range(start, start + 500)]
        await asyncio.gather(*(put_async(store, name, b"x") for name in names))


@pytest.mark.slow
@pytest.mark.skipif(not is_ceph(), reason="moto sorts all keys for each page of a listing: this needs Ceph")
def test_a_hundred_thousand_keys_are_listed_in_little_memory(bucket: Bucket) -> None:
    asyncio.run(_fill(_direct(bucket), 100_000))
    done = subprocess.run([sys.executable, "-c", LIST, f"{bucket.uri}/in"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    count, grown_kib = map(int, done.stdout.split())
    assert count == 100_000
    assert grown_kib < 8 << 10
    assert bucket.proxy.count("GET", f"^/{bucket.name}/?$") < 150, "a page of a listing has 1,000 keys"


@pytest.mark.slow
def test_a_listing_goes_on_after_a_fault(bucket: Bucket) -> None:
    """Pages fail, and no key is left out or listed twice."""
    asyncio.run(_fill(_direct(bucket), 1500))
    rule = bucket.proxy.fail(px.reset_in_body, "GET", f"^/{bucket.name}", every=2)
    found = [entry.uri for entry in walk(f"{bucket.uri}/in")]
    assert rule.hits >= 1
    assert found == [f"{bucket.uri}/{name}" for name in bucket.keys("in/")]
    assert len(found) == 1500
