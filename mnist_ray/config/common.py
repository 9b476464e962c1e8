"""What the settings of several commands share: how a flag looks in the help, the flags of the output, and a check of types."""

from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from mnist_ray.console import LogFormat
from mnist_ray.flags import require

_WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text", tuple: "a tuple", NoneType: "None"}


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


def require_types(config: object) -> None:
    """Raise UsageError for a field of another type than it is declared to have. Only Python code can set one."""
    for name, hint in get_type_hints(type(config)).items():
        if name in vars(config):
            require_type(name, getattr(config, name), hint)


def require_type(name: str, value: object, hint: Any) -> None:
    """Raise UsageError if the value of a flag is none of its `Literal`, or not of its type. An int is a float, too.

    `hint` is a `Literal`, a tuple, or a union of plain types and None.
    """
    if get_origin(hint) is Literal:
        fits, expected = value in get_args(hint), f"one of {', '.join(get_args(hint))}"
    else:
        kinds = (tuple,) if get_origin(hint) is tuple else get_args(hint) or (hint,)
        numbers = (*kinds, int) if float in kinds else kinds
        fits = bool in kinds if isinstance(value, bool) else isinstance(value, numbers)
        expected = ", or ".join(_WORDS[kind] for kind in kinds)
    require(fits, f"--{name.replace('_', '-')} {value!r}: expected {expected}")
