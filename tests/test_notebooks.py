"""The notebooks run from top to bottom, and their committed outputs are current.

`.venv/bin/jupyter execute --inplace notebooks/*.ipynb` renews the outputs.
"""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOKS = ROOT / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
MAX_BYTES = 1_500_000


def _code_cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def _texts(output: Any) -> list[str]:
    """All text of an output that a reader sees."""
    shown = output.get("data", {})
    return [output.get("text", ""), shown.get("text/plain", ""), shown.get("text/html", "")]


def _form(cell: Any) -> list[tuple[str, str]]:
    """What kind of outputs a cell has. Of printed text, all but the numbers counts, because they depend on the machine."""
    forms = []
    for output in cell.outputs:
        kinds = " ".join(sorted(output.get("data", {})))
        printed = re.sub(r"\s+", " ", re.sub(r"\d[\d.,e+-]*", "#", output.get("text", "")))
        forms.append((f"{output.output_type} {kinds}", printed))
    return forms


def test_both_notebooks_are_there() -> None:
    assert NAMES == ["digit_classification", "reading_a_table"]


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_come_from_one_run(name: str) -> None:
    path = NOTEBOOKS / f"{name}.ipynb"
    cells = _code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    for text in (text for output in outputs for text in _texts(output)):
        assert not re.search(r"(?<![\w./:<])/[\w.-]+/", text), f"absolute path in {text!r}"
        assert "warning" not in text.lower()
    assert path.stat().st_size < MAX_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name: str, tmp_path: Path) -> None:
    """Each cell gives the same kind of outputs as the committed ones, with the same text between the numbers."""
    committed = NOTEBOOKS / f"{name}.ipynb"
    notebook = nbformat.read(committed, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place, coalesce_streams=True).execute()
    found = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for new, old in zip(found, _code_cells(committed), strict=True):
        assert _form(new) == _form(old), old.source
