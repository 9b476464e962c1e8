"""What all pages share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mnist_ray.report import page
from mnist_ray.report.charts import chart


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> str:
    """A template of the test, which uses all pieces."""
    source = """{% extends "base.html" %}
    {% block title %}{{ name }}{% endblock %}{% block kind %}A test{% endblock %}
    {% block content %}
      <h2>Pieces</h2>
      {{ parts.figures([("98.2 %", "accuracy")]) }}
      <div class="charts">{{ parts.chart(svg, "A line") }}{{ parts.chart(other, "Another line") }}</div>
      <div class="digits">{{ parts.digit(picture, "a seven", "7", wrong=true) }}</div>
      {{ parts.facts([("file", name)]) }}
    {% endblock %}"""
    from jinja2 import DictLoader, PackageLoader

    class Loader(PackageLoader):
        def get_source(self, environment, template):  # type: ignore[no-untyped-def]
            if template == "test.html":
                return DictLoader({template: source}).get_source(environment, template)
            return super().get_source(environment, template)

    monkeypatch.setattr(page, "PackageLoader", Loader)
    return "test.html"


def test_a_page_opens_everywhere_and_text_stays_text(template: str, check_page: Callable[[Path], str], tmp_path: Path) -> None:
    svgs = []
    for name in ("one", "two"):
        with chart(name, "a line <b>") as drawing:
            drawing.axes.plot([0, 1, 2], [3, 2, 1])
            drawing.axes.set_xlabel("samples")
        svgs.append(drawing.svg)
    image = page.picture(np.full((28, 28), 200, np.uint8))
    attack = "<script>console.log('it ran')</script>.png"
    file = tmp_path / "page.html"
    file.write_bytes(page.render(template, name=attack, svg=svgs[0], other=svgs[1], picture=image))
    assert attack in check_page(file)


def test_a_chart_has_the_colours_of_the_page_and_ids_of_its_own() -> None:
    svgs = []
    for name in ("one", "two"):
        with chart(name, "a line") as drawing:
            drawing.axes.plot([0, 1], [1, 0])
        svgs.append(str(drawing.svg))
    assert "var(--first)" in svgs[0]
    assert "#0" not in svgs[0]
    assert svgs[0].replace("one-", "two-") == svgs[1]
