"""Settings of the documentation site, which `make docs` builds.

The pages are plain Markdown, so that they also read well on a code host. What only the site needs is added while a page is
read: the navigation, the first screen of the README on the home page, and links to pages whose files are outside this folder.
"""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for autodoc

project = "mnist_ray"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
nb_execution_mode = "off"
myst_heading_anchors = 3
default_role = "code"
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # the types in signatures have no pages here
maximum_signature_line_length = 80
html_theme = "furo"
html_title = "mnist_ray"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sphinx = html_copy_source = False

OUTSIDE = r"\[([^\]]*)\]\((?:\.\./)+(?:(benchmarks)/README|(notebooks/\w+))\.\w+\)"
"""Links to files outside this folder that are pages of the site, through symbolic links in this folder."""
FIRST_SCREEN = """```{include} ../README.md
:relative-docs: docs/
:relative-images:
:end-before: "## Documentation"
```
"""
TOCTREE = """
```{{toctree}}
:hidden:
:caption: {}

{}
```
"""
DECISIONS = """
```{toctree}
:glob:
:titlesonly:

0*
```
"""


def _navigation(home: str) -> str:
    """A hidden toctree for each section of the home page, with the pages that the section links."""
    toctrees = []
    for section in re.sub(OUTSIDE, r"[\1](\2\3)", home).split("\n## ")[1:]:
        caption, _, lines = section.partition("\n")
        pages = re.findall(r"^- \[.+?\]\((.+?)\)", lines, re.MULTILINE)
        toctrees.append(TOCTREE.format(caption, "\n".join(pages)))
    return "".join(toctrees)


def _read(_: Sphinx, page: str, content: list[str]) -> None:
    """Change the text of a page before it is parsed."""
    text = content[0]
    if page == "index":
        text = re.sub(r"^# .*\n", FIRST_SCREEN, text) + _navigation(text)
    elif page == "decisions/README":
        text += DECISIONS
    content[0] = re.sub(OUTSIDE, r"{doc}`\1 </\2\3>`", text)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _read)
