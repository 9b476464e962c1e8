"""What the settings of several commands share: how a flag looks in the help, and the flags of the output."""

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from mnist_ray.console import LogFormat


def flag(metavar: str | None = None, default: str | None = None) -> Any:
    """How a flag looks in the help: what it takes, and its default. Without `default`, it is the value of the field."""
    hint = None if default is None else default and f"(default: {default})"
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)


Switch = Annotated[bool, flag(default="")]
"""A flag without a value."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the command prints."""

    log_format: LogFormat = "text"
    """json: each line of standard output is one JSON object with level, event, message and figures."""
    quiet: Switch = False
    """Print only the result and errors."""
