"""Every lesson runs from top to bottom, and what is kept of it can be read on a code host."""

import os
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))
# What a lesson is tried with, in place of what it shows: the same cells in half of the time.
SHORTER = {
    "02": {"[20, 50, 100, 300, 1000]": "[20, 1000]"},
    "03": {"steps=150": "steps=75", "steps=200": "steps=50"},
    "05": {"[2, 5, 10, 20]": "[5, 20]"},
}
MAX_KEPT = 400_000  # bytes; GitHub shows notebooks of this size at once


def test_all_lessons_are_there() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Jupyter's own, in this process; not those of the lesson
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_runs(path: Path) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    for shown, tried in SHORTER.get(path.name[:2], {}).items():
        (cell,) = [each for each in notebook.cells if shown in each.source]
        cell.source = cell.source.replace(shown, tried)
    folder = {"metadata": {"path": str(path.parent)}}
    # A cell that raises, or does not end, fails the test with the cell's text.
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=folder).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept_is_small_complete_and_tells_nothing_of_its_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < MAX_KEPT
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1)), "run it from top to bottom and keep the outputs"
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)
    texts = [
        str(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in outputs
    ]
    assert not any(str(Path.home()) + os.sep in text or "site-packages" in text for text in texts)
    first = notebook.cells[0].source
    assert first.startswith(f"# {int(path.name[:2])} ·")
    assert "**Question.**" in first
