"""examples/tour.ipynb runs from top to bottom, on fewer questions, and its pictures and numbers are those of its code."""

from __future__ import annotations

import re

import pytest
from support.scripts import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
TOUR = ROOT / "examples" / "tour.ipynb"


@pytest.mark.slow
def test_the_tour_runs_and_shows_what_it_says(tmp_path, monkeypatch):
    committed = nbformat.read(TOUR, as_version=4)
    nbformat.validate(committed)
    cells = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "it was not run from top to bottom"
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    pictures = [o for cell in cells for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3
    shown = {n: o.data["text/plain"] for n, cell in enumerate(cells) for o in cell.outputs if o.output_type == "execute_result"}
    for cell in cells:
        cell.source = re.sub(r"limit=\d+", "limit=4", cell.source)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own shows pictures
    nbclient.NotebookClient(committed, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for n, cell in enumerate(cells):
        assert len([o for o in cell.outputs if "image/png" in o.get("data", {})]) == cell.source.count("plt.show()")
        if "limit=" not in cell.source and n in shown:
            (result,) = [o.data["text/plain"] for o in cell.outputs if o.output_type == "execute_result"]
            assert result == shown[n], f"cell {n} shows something else now; run the notebook again"
    assert (tmp_path / "outputs" / "tour" / "question.html").is_file()
