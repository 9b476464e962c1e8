"""Charts as SVG, drawn by matplotlib. Their colours are those of the page, so that they follow its light and dark themes."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {
    "ink": "#010101",
    "muted": "#020202",
    "line": "#030303",
    "paper": "#040404",
    "good": "#050505",
    "bad": "#060606",
    "first": "#070707",
    "second": "#080808",
    "third": "#090909",
    "fourth": "#0a0a0a",
}
"""Stand-ins for the colours of `page.css`: matplotlib draws with them, and `to_svg` replaces each by the page's variable."""
SERIES = tuple(COLOURS[name] for name in ("first", "second", "third", "fourth"))
"""The colours of the series of a chart, in order."""
WIDTH, HEIGHT = 4.4, 2.8
"""Size of a chart in inches. On a phone, a wider one would be scaled down with its text."""
LEFT, BOTTOM, RIGHT, TOP = 0.8, 0.5, 0.15, 0.12
"""Margins of a chart in inches. Matplotlib's own layouts measure all texts first, which takes as long as drawing."""
_STYLE: Any = {
    "figure.autolayout": False,  # a notebook may have set these
    "figure.constrained_layout.use": False,
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "mnist_ray",  # the same chart gives the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "text.color": COLOURS["ink"],
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}


class Chart:
    """A chart that is being drawn on `axes`. After the `chart` block, `svg` holds it."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.svg = Markup("")


@contextmanager
def chart(name: str, label: str) -> Iterator[Chart]:
    """Draw one chart in this block.

    `name` is unique on its page, and `label` says in words what the chart shows.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        figure.subplots_adjust(LEFT / WIDTH, BOTTOM / HEIGHT, 1 - RIGHT / WIDTH, 1 - TOP / HEIGHT)
        drawing = Chart(figure.subplots())
        drawing.axes.set_prop_cycle(color=SERIES)
        yield drawing
        drawing.svg = _to_svg(figure, name, label)


def _to_svg(figure: Figure, name: str, label: str) -> Markup:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(id="|url\(#|xlink:href="#)', rf"\g<1>{name}-", svg)  # ids are unique on the page
    for colour, stand_in in COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{colour})")
    attributes = Markup('<svg role="img" aria-label="{}"').format(label)
    return Markup(re.sub(r'<svg height="[^"]*"|<svg', attributes, svg, count=1))
