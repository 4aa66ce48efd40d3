"""The notebooks in examples/ run from beginning to end, and what stands in them came of a run."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
_CELL_S = 300


def _read(path: Path) -> Any:
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(path, as_version=4)


def execute(notebook: Any, folder: Path) -> None:
    """Run it in place. A kernel of its own, on one core, in `folder`."""
    from nbclient import NotebookClient

    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONWARNINGS"] = "default"  # the kernel is other people's code
    client = NotebookClient(notebook, timeout=_CELL_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell began and ended


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_was_run_and_is_small(path: Path) -> None:
    notebook = _read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert path.stat().st_size < 500_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    for needed in ("nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(needed)
    notebook = _read(path)
    execute(notebook, tmp_path)


if __name__ == "__main__":  # python -m tests.test_notebooks: run them and keep what comes out
    import tempfile

    import nbformat

    for each in [Path(name) for name in sys.argv[1:]] or NOTEBOOKS:
        fresh = _read(each)
        with tempfile.TemporaryDirectory() as scratch:
            execute(fresh, Path(scratch))
        nbformat.write(fresh, each)  # type: ignore[no-untyped-call, unused-ignore]
