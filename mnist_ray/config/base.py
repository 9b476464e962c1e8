"""What the configurations of all jobs share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any, ClassVar, Literal

from mnist_ray.errors import UsageError

Device = Literal["auto", "cpu", "cuda"]


def require(condition: bool, message: str) -> None:
    """Raise UsageError with this message if the condition is false."""
    if not condition:
        raise UsageError(message)


class Fingerprinted:
    """A configuration whose identity is a digest of every field that can change its results."""

    __slots__ = ()
    _resources: ClassVar[frozenset[str]] = frozenset()

    def identity(self) -> dict[str, Any]:
        """The fields that can change the result: all but those that name resources and places."""
        fields: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # type: ignore[call-overload]
        return {name: value for name, value in fields.items() if name not in self._resources}

    def fingerprint(self) -> str:
        """SHA-256 of `identity()`, as 64 hexadecimal characters."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
