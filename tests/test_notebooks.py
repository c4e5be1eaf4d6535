"""The notebooks run from their first cell to their last, offline, and show pictures and tables, not lines."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "analyses").glob("*.ipynb"))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_and_shows_what_a_network_is_not_needed_for(file, tmp_path):
    notebook = nbformat.read(file, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # kept small: no output is stored
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = [
        (cell.source, out.data) for cell in notebook.cells for out in cell.get("outputs", []) if "data" in out
    ]
    charts = [data for source, data in shown if "mr.plot_" in source and "image/png" in data]
    assert len(charts) >= 3
    assert all("application/vnd.vegalite.v6+json" in data and "text/html" not in data for data in charts)
    tables = ("fits.summary(", "mr.describe_model(", "mr.regression_table(", "mr.compare_profiles(")
    for source, data in shown:
        if source.splitlines()[-1].startswith(tables):
            assert "<table" in data["text/html"] or "<pre" in data["text/html"]
    assert "Error loading script" not in str(shown)
    printed = [out.text for cell in notebook.cells for out in cell.get("outputs", []) if "text" in out]
    assert not [text for text in printed if "Warning" in text]
