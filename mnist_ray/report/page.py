"""HTML pages from the templates of this folder. A page is one file: styles, pictures and charts are inside it."""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from mnist_ray.data.digits import CLASSES
from mnist_ray.data.images import encode_png


def picture(image: NDArray[np.uint8]) -> str:
    """Grey levels uint8[H, W] as the URI of a PNG that a page, or a JSON file, can hold."""
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()


def short_name(folder: str) -> str:
    """The last two parts of the path or URI of a run or a table."""
    return "/".join(folder.rstrip("/").rsplit("/", 2)[-2:]) or folder


def _percent(share: float, digits: int = 2) -> str:
    return f"{share:.{digits}%}".replace("%", " %")


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _seconds(value: float) -> str:
    """A duration with the unit that suits it."""
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:,.1f} h"


_FILTERS: dict[str, Callable[..., str]] = {"percent": _percent, "number": _number, "seconds": _seconds, "short": short_name}


def render(template: str, **context: Any) -> bytes:
    """The page that a template makes of these values and of `classes`, as UTF-8. All text is escaped, unless it is `Markup`."""
    environment = Environment(
        loader=PackageLoader("mnist_ray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    environment.globals["classes"] = CLASSES
    return environment.get_template(template).render(**context).encode("utf-8", "backslashreplace")
