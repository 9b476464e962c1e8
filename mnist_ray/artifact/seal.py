"""The seal of a bundle: `digest.json`, written last, with the SHA-256 of each file. Does not import torch."""

import hashlib
import json

from mnist_ray.data import storage
from mnist_ray.errors import ModelError

FILES = ("weights.safetensors", "card.json", "selftest.safetensors")
_SEAL = "digest.json"


def _digest(hashes: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def write(place: str, files: dict[str, bytes]) -> str:
    """Write the files of a bundle, and its seal last; returns the bundle's digest. Raises StorageError."""
    storage.delete(storage.join(place, _SEAL))
    for name, data in files.items():
        storage.write(storage.join(place, name), data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    storage.write_json(storage.join(place, _SEAL), {"bundle": _digest(hashes), "files": hashes})
    return _digest(hashes)


def find(uri: str) -> str:
    """The bundle folder in `uri`, which is a run directory or a bundle folder. Raises ModelError."""
    for place in (uri, storage.join(uri, "model")):
        if storage.is_file(storage.join(place, _SEAL)):
            return storage.absolute(place)
    raise ModelError(f"{uri}: is neither a model bundle nor a finished run: expected {_SEAL} in it or in its model/")


def read(place: str) -> tuple[dict[str, bytes], str]:
    """The files of a bundle, checked against the seal, and the bundle's digest. Raises ModelError."""
    manifest = storage.join(place, _SEAL)
    try:
        listed = storage.read_json(manifest)
        expected = {name: str(listed["files"][name]) for name in FILES}
        digest = str(listed["bundle"])
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{manifest}: is damaged; expected the SHA-256 of {', '.join(FILES)}") from None
    if digest != _digest(expected):
        raise ModelError(f"{manifest}: its bundle digest does not match its list of files; the file was changed")
    return {name: _read_one(storage.join(place, name), expected[name]) for name in FILES}, digest


def _read_one(uri: str, expected: str) -> bytes:
    try:
        data = storage.read(uri)
    except FileNotFoundError:
        raise ModelError(f"{uri}: is missing from the bundle") from None
    if (found := hashlib.sha256(data).hexdigest()) != expected:
        raise ModelError(f"{uri}: its SHA-256 is {found[:12]}…, expected {expected[:12]}…; the file was changed or damaged")
    return data
