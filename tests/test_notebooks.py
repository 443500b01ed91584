from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))

# Long ones that use little that differs between the Pythons.
LONG = ("02_learned_prior", "04_memories", "06_levels")


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.statistical if p.stem in LONG else ()) for p in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_runs_and_draws_its_pictures(path, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # pictures go into the notebook
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": tmp_path}}).execute()
    for number, cell in enumerate(notebook.cells):
        outputs = cell.get("outputs", [])
        warned = [out.text for out in outputs if "Warning" in out.get("text", "")]
        # ArviZ 0.23 announces its successor on import.
        unexpected = [t for t in warned if "ArviZ is undergoing a major refactor" not in t]
        assert not unexpected
        if cell.cell_type == "code" and ("plot_" in cell.source or "plots." in cell.source):
            assert any("image/png" in out.get("data", {}) for out in outputs), number


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_with_its_pictures(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in out.get("data", {}) for cell in code for out in cell.outputs)
