"""The notebook of the documentation runs from top to bottom, and shows what it promises."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "quickstart.ipynb"
SHORTER = {
    '"data.num_workers": 0,': '"data.num_workers": 0, "data.synthetic.train": 8, "data.synthetic.test": 4, "prompter.steps": 20,',
    "max_epochs=4": "max_epochs=1",
}
"""What the test changes in it: a quarter of the images and of the training."""


def shorten(source: str) -> str:
    for words, other in SHORTER.items():
        source = source.replace(words, other)
    return source


@pytest.mark.slow
def test_quickstart__runs_and_shows_tables_curves_and_masks(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without what a run left"
    source = "".join(cell.source for cell in notebook.cells)
    assert all(source.count(words) == 1 for words in SHORTER)
    for cell in notebook.cells:
        cell.source = shorten(cell.source)
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [{kind for output in cell.get("outputs", []) for kind in output.get("data", {})} for cell in notebook.cells]
    assert sum("image/png" in kinds for kinds in shown) == 3  # curves, an overlay, a prediction
    texts = [
        output["data"]["text/plain"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "data" in output
    ]
    assert sum("test/box_filled" in text and "mean_iou" in text for text in texts) == 3
    assert any("predicted_iou" in text for text in texts)
    assert (tmp_path / "outputs" / ".latest" / "export").exists()
