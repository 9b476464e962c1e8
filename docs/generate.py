"""Writes the generated parts of the reference: flags, columns, reasons and exit statuses, from the code that defines them.

Run `python docs/generate.py` after a change of one of them. The pages are committed, so that they can be read without a build.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mnist_ray.cli import _COMMANDS
from mnist_ray.data.containers import Reason
from mnist_ray.data.digits import CLASSES
from mnist_ray.data.traits import TRAITS
from mnist_ray.errors import EXIT_STATUSES
from mnist_ray.scoring import schema
from mnist_ray.scoring.ignored import Why

DOCS = Path(__file__).resolve().parent
FOLDER, DECISIONS = DOCS / "reference", DOCS / "decisions"


def _docstrings(kind: type) -> dict[str, str]:
    """The text below each attribute of a class, by the attribute's name."""
    found = {}
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    for node, below in pairwise(ast.iter_child_nodes(tree)):
        match node, below:
            case ast.Assign(targets=[name]) | ast.AnnAssign(target=name), ast.Expr(value=ast.Constant(value=str(text))):
                found[ast.unparse(name)] = " ".join(text.split())
    return found


def _table(head: str, rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table. A bar in a cell is escaped."""
    names = head.split(", ")
    lines = [names, ["---"] * len(names), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _flag(field: Field[Any], kind: type, meaning: str) -> tuple[str, str, str]:
    """The row of a flag: its name and what it takes, its default, and its meaning."""
    hint = get_type_hints(kind, include_extras=True)[field.name]
    settings = [about for about in getattr(hint, "__metadata__", ()) if hasattr(about, "help_behavior_hint")]
    takes = settings[0].metavar if settings else "|".join(get_args(hint))
    default = settings[0].help_behavior_hint if settings else None
    if default is None:
        default = "required" if field.default is MISSING else f"`{field.default}`"
    if "Positional" in str(hint):
        return f"`{takes}`", "required", meaning
    name = f"--{field.name}".replace("_", "-")
    return f"`{f'{name} {takes}' if takes else name}`", re.sub(r"\(default: (.*)\)", r"\1", default) or "off", meaning


def _command(kind: type) -> Iterator[str]:
    """The section of a command."""
    yield f"## {_COMMANDS[kind].__name__}\n\n{inspect.getdoc(kind)}\n"
    yield "```sh\n{}\n```\n".format("\n".join(getattr(kind, "EXAMPLES", ())))
    groups = [base for base in reversed(kind.__bases__) if is_dataclass(base)]
    for group in groups or [kind]:
        texts = _docstrings(group)
        rows = (_flag(field, group, texts[field.name]) for field in fields(group))
        yield (f"**{str(group.__doc__).rstrip('.')}**\n\n" if groups else "") + _table("Flag, Default, Meaning", rows)


def _columns(tables: dict[str, Iterable[pa.Field]]) -> str:
    """The columns of tables. A column that several have is one row."""
    found: dict[str, tuple[pa.Field, list[str]]] = {}
    for table, columns in tables.items():
        for column in columns:
            found.setdefault(column.name, (column, []))[1].append(table)
    rows = []
    for name, (column, inside) in found.items():
        kind = re.sub(r"fixed_size_list<item: (\w+)>.*", r"list of \1", str(column.type))
        unit, meaning = schema.MEANINGS[name]
        rows.append((f"`{name}`", ", ".join(inside), kind, unit, meaning))
    return _table("Column, Table, Type, Unit, Meaning", rows)


def _title(page: Path) -> str:
    return page.read_text().partition("\n")[0].removeprefix("# ")


def _parts() -> dict[str, str]:
    """The generated parts of the pages by their names, which the markers in the pages carry."""
    every, some = ([*schema.predictions(schema.NOTHING, number, review=True)] for number in (len(CLASSES), 3))
    reasons, whys = _docstrings(Reason), _docstrings(Why)
    return {
        "commands": "\n".join(part for kind in _COMMANDS for part in _command(kind)),
        "statuses": _table("Status, Meaning", ((f"{status}", meaning) for status, meaning in EXIT_STATUSES.items())),
        "columns": _columns(
            {
                "predictions": [*every[:-1], *some[-3:]],
                "quarantine": schema.QUARANTINE,
                "changes": schema.CHANGES,
                "ignored": schema.IGNORED,
            }
        ),
        "whys": _table("Why, Meaning", ((f"`{why}`", whys[why.name]) for why in Why)),
        "traits": _table(
            "Trait, Unit, Bins begin at",
            ((f"`{name}`", trait.unit, ", ".join(f"{edge:g}" for edge in trait.edges[:-1])) for name, trait in TRAITS.items()),
        ),
        "decisions": "".join(f"- [{_title(page)}]({page.name})\n" for page in sorted(DECISIONS.glob("0*.md"))),
        "reasons": _table("Reason, Meaning", ((f"`{reason}`", reasons[reason.name]) for reason in Reason)),
    }


def pages() -> dict[Path, str]:
    """The pages with generated parts, as they should be."""
    parts = _parts()
    marked = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    paths = [FOLDER / "commands.md", FOLDER / "files.md", DECISIONS / "README.md"]
    return {path: marked.sub(lambda found: f"{found[1]}\n{parts[found[2]]}\n{found[3]}", path.read_text()) for path in paths}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
