"""The buckets of S3, Google and Azure, and of servers that speak their protocols, through obstore."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from mnist_ray.data.patience import NotAFileError, patiently
from mnist_ray.data.store import REQUEST_BYTES, Check, Found, Reader, unchecked
from mnist_ray.errors import StorageError, first_line

SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
REQUEST_S = 15
"""Seconds after which a request counts as unanswered. This includes its body."""
CONNECT_S = 5
"""Seconds to wait for a connection."""


class ObjectStore:
    """A bucket. Its methods are documented in `Store`. Credentials and the endpoint come from the environment."""

    def __init__(self, root: str) -> None:
        """`root` is the URI of the bucket. Raises ValueError or an error of obstore if it, or the environment, is wrong."""
        from obstore.store import from_url

        self._root, self._bucket_exists = root, False
        endpoints = {name: os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")}
        for name, endpoint in endpoints.items():
            if endpoint and not endpoint.startswith(("http://", "https://")):  # obstore would end this process
                raise ValueError(f"{name} is {endpoint!r}; expected http://HOST:PORT or https://HOST:PORT")
        insecure = any(endpoint.startswith("http://") for endpoint in endpoints.values())
        retry = {"max_retries": 3, "retry_timeout": timedelta(seconds=10)}  # quick ones: `patiently` waits out the others
        client = {"timeout": f"{REQUEST_S}s", "connect_timeout": f"{CONNECT_S}s", **({"allow_http": True} if insecure else {})}
        self._store: Any = from_url(root, client_options=client, retry_config=retry)  # type: ignore[call-overload]

    def read(self, path: str, limit: int) -> bytes:
        with _object_answers():
            found = self._store.get(path)
            size = min(found.meta["size"], limit)
            if size == found.meta["size"] <= REQUEST_BYTES:
                return found.bytes().to_bytes()  # type: ignore[no-any-return]
            pieces = [(start, min(REQUEST_BYTES, size - start)) for start in range(0, size, REQUEST_BYTES)]
            return b"".join(self._store.get_range(path, start=start, length=length) for start, length in pieces)

    def open(self, path: str) -> Reader:
        with _object_answers():
            return _ObjectReader(self._store, path, self._head(path)["size"])

    def find(self, path: str) -> Found | None:
        try:
            with _object_answers():
                return _found(self._head(path), path)
        except FileNotFoundError:
            self._require_bucket()
            return None

    def _head(self, path: str) -> dict[str, Any]:
        """The size and the ETag of an object."""
        try:
            with _object_answers():
                return self._store.head(path)  # type: ignore[no-any-return]
        except (PermissionError, StorageError):
            # The answer to a HEAD request has no body. That to a GET request says why it is refused.
            return self._store.get(path).meta  # type: ignore[no-any-return]

    def _require_bucket(self) -> None:
        """Raise StorageError if there is no such bucket. The answer to a HEAD request does not say it."""
        if not self._bucket_exists:
            with suppress(PermissionError):
                self.is_folder("")
            self._bucket_exists = True

    def walk(self, path: str) -> Iterator[Found]:
        last, pages = None, None

        def next_page() -> list[dict[str, Any]] | None:
            """The next page. After a fault, the listing goes on after the last key."""
            nonlocal pages
            ahead = pages or iter(self._store.list(path or None, offset=last, chunk_size=1000))
            pages = None
            with _object_answers():
                page = next(ahead, None)
            pages = ahead
            return page

        while page := patiently(f"{self._root}/{path}", "listed", next_page):
            last = page[-1]["path"]
            yield from (_found(meta, meta["path"][len(path) :].lstrip("/")) for meta in page)

    def names(self, path: str) -> list[str]:
        with _object_answers():
            found = self._store.list_with_delimiter(path or None)
        return sorted(name.rpartition("/")[2] for name in (*found["common_prefixes"], *(it["path"] for it in found["objects"])))

    def is_folder(self, path: str) -> bool:
        with _object_answers():
            return any(self._store.list(path or None, chunk_size=1))

    def write(self, path: str, data: bytes, check: Check = unchecked) -> None:
        check()
        with _object_answers():
            self._store.put(path, data)

    def create(self, path: str, data: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError, NotSupportedError

        with _object_answers():
            try:
                self._store.put(path, data, mode="create")
            except AlreadyExistsError:
                return False
            except (NotSupportedError, NotImplementedError):  # a server without conditional writes
                self._store.put(path, data)
        return True

    def delete(self, path: str, check: Check = unchecked) -> None:
        with _object_answers():
            for page in self._store.list(path or None):
                check()
                self._store.delete([meta["path"] for meta in page])
            check()
            with suppress(FileNotFoundError):
                self._store.delete(path)


class _ObjectReader:
    def __init__(self, store: Any, path: str, size: int) -> None:
        self._store, self._path, self.size = store, path, size

    def read_at(self, start: int, length: int) -> bytes:
        with _object_answers():
            return self._store.get_range(self._path, start=start, length=length).to_bytes()  # type: ignore[no-any-return]

    def close(self) -> None:
        """Nothing stays open between two requests."""


def _found(meta: dict[str, Any], path: str) -> Found:
    # Not the time: listings and single requests may round it differently.
    return Found(path, meta["size"], (meta["e_tag"] or "").strip('"'))


_FINAL_STATUSES = range(300, 500)  # 301 is the answer to a wrong region
_BUSY_STATUSES = {408, 425, 429}
_PASSING_CODES = {
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "SlowDown",
    "TokenRefreshRequired",
}
"""Error codes of S3 that later requests may not get: credentials are renewed, and clocks are set."""


@contextmanager
def _object_answers() -> Iterator[None]:
    """Turn obstore's errors into answers, faults (OSError) and refusals that stay (StorageError)."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, FileNotFoundError, PermissionError, ValueError) as error:
        raise _object_error(error) from None


def _object_error(error: Exception) -> Exception:
    text = str(error)
    if isinstance(error, ValueError) or type(error).__name__ == "InvalidPathError":
        return NotAFileError(f"this is no valid key ({first_line(error)}); rename it")
    code = found[1] if (found := re.search(r"<Code>(\w+)</Code>", text)) else ""
    status = int(found[1]) if (found := re.search(r"status code: (\d{3})", text)) else 0
    why = code or (f"HTTP status {status}" if status else _cause(text))
    if "169.254.169.254" in text:  # asked by obstore where the environment has no credentials
        return OSError("no credentials found; set those of this storage in the environment, such as AWS_ACCESS_KEY_ID")
    if "redirect without LOCATION" in text:  # obstore leaves out the rest of the answer
        return StorageError("the bucket is in another region; set its region in the environment, such as AWS_REGION")
    if code in _PASSING_CODES:
        return OSError(why)
    if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
        return FileNotFoundError("there is no such file")
    if status == 403 and code in ("", "AccessDenied"):
        return PermissionError("access denied")
    if code == "InvalidObjectState":
        return PermissionError("the object is archived; restore it first")
    if status in _BUSY_STATUSES or status not in _FINAL_STATUSES:
        return OSError(why)
    return StorageError(f"{why}; check the bucket, the region and the credentials")


def _cause(text: str) -> str:
    """What went wrong below HTTP, in words."""
    if found := re.search(r'(?:message|error): "([^"]+)"', text):
        return found[1].lower()
    if "TimedOut" in text or "kind: Timeout" in text:
        return f"no answer within {REQUEST_S} s"
    return first_line(Exception(text)).rpartition(" - ")[2]
