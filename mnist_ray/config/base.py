"""What the settings of all commands share: validation and the fingerprint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any, ClassVar, Literal

from mnist_ray.errors import UsageError

Device = Literal["auto", "cpu", "cuda"]


def require(holds: bool, message: str) -> None:
    """Raise UsageError with this message if a condition does not hold."""
    if not holds:
        raise UsageError(message)


class Fingerprinted:
    """Settings with a digest of all fields that can change the result."""

    __slots__ = ()
    _resources: ClassVar[frozenset[str]] = frozenset()
    """Fields that cannot change the result."""

    def identity(self) -> dict[str, Any]:
        """The fields that can change the result, as JSON values: without resources, places and ways to run."""
        fields: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # type: ignore[call-overload]
        return {name: value for name, value in fields.items() if name not in self._resources}

    def fingerprint(self) -> str:
        """SHA-256 of `identity()`, as 64 hexadecimal characters."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
