"""How a training loop speaks with the job that runs it. Does not import torch."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from typing import Any


class PeersLostError(Exception):
    """The workers could not communicate, because one of them or its node is gone. Another start of the workers may succeed."""


class Request(IntFlag):
    """What all workers are asked to do after a step; rank 0 decides."""

    NOTHING = 0
    SAVE = 1
    """Save a checkpoint and go on."""
    STOP = 2
    """Save a checkpoint and stop."""
    ABANDON = 4
    """Stop without saving: the run belongs to another job."""
    CHECK_NODES = 8
    """Call `RunControl.node_leaving` on all workers."""


@dataclass(frozen=True)
class Meeting:
    """What a worker needs to form a process group with the other workers. By default, it is alone."""

    rank: int = 0
    world: int = 1
    """The number of workers."""
    host: str = ""
    """The address of this worker, as the others see it."""
    from_rank_0: Callable[[tuple[str, int] | None], tuple[str, int]] = lambda _: ("", 0)
    """Returns on every worker the value that rank 0 gives to it. Collective."""


class RunControl:
    """How a training loop speaks with the job that runs it. This base class runs a loop that nobody watches or stops."""

    meeting = Meeting()
    """How this worker meets the others."""

    def requested(self) -> Request:
        """NOTHING, STOP or ABANDON. The loop calls it often, on rank 0 only."""
        return Request.NOTHING

    def node_leaving(self) -> bool:
        """Whether a worker's node is about to be taken away. Collective: all workers call it at the same step."""
        return False

    def show(self, record: dict[str, Any]) -> None:
        """Show a progress record (see `Loop`). Called on rank 0, about once per second."""
