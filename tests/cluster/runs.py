"""What tests read from a run directory."""

import json
from pathlib import Path
from typing import Any


def checkpoints(run: Path) -> list[int]:
    """The samples seen at each complete checkpoint, ascending."""
    return sorted(int(path.parent.name.removeprefix("samples-")) for path in run.glob("checkpoints/samples-*/commit.json"))


def weights(run: Path) -> bytes:
    """The trained weights, as their file's bytes."""
    return (run / "model" / "weights.safetensors").read_bytes()


def history(run: Path) -> list[dict[str, Any]]:
    """One row per epoch."""
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def metrics(run: Path) -> dict[str, Any]:
    """The results of a finished run."""
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found
