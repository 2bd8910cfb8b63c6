"""A notebook from a DataFrame to a plot, run by nbclient; and the view in it, without a kernel."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from lamina.api.notebook import NotebookView
from lamina.api.progress import choose_view, in_notebook
from lamina.api.terminal import TrainingView
from lamina.runs.events import Evaluation, Note
from tests.support.events import step

CELLS = [
    "import pandas as pd\nimport lamina\n"
    "frame = pd.DataFrame({{'question': [f'say {{n}}' for n in range(24)], 'answer': [f'{{n}}!' for n in range(24)]}})",
    "run = lamina.train(data=frame, columns={{'prompt': 'question', 'completion': 'answer'}}, model={model!r},\n"
    "                   method='lora', r=4, max_steps=4, eval_steps=2, max_length=64, dtype='float32')",
    "run",
    "run.plot()",
    "run.table()",
    "lamina.generate(run.path, 'say 3', max_new_tokens=4)",
    "again = lamina.train(data=frame, columns={{'prompt': 'question', 'completion': 'answer'}}, model={model!r},\n"
    "                     method='lora', r=2, max_steps=4, eval_steps=2, max_length=64, dtype='float32')\n"
    "lamina.compare_runs(run, again)",
    "lamina.train(data=frame, max_step=3)",
]


@pytest.mark.slow
def test_from_a_frame_to_a_plot(model_folder: Path, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    import nbformat

    cells = [nbformat.v4.new_code_cell(cell.format(model=str(model_folder))) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(
        notebook, timeout=300, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [cell.outputs for cell in notebook.cells]
    errors = [output for cell in outputs[:-1] for output in cell if output.output_type == "error"]
    assert not errors, errors

    def html(cell: int) -> str:
        return "".join(output.get("data", {}).get("text/html", "") for output in outputs[cell])

    assert "<progress value=4 max=4" in html(1) and "finished" in html(1)
    shown = [output for output in outputs[1] if output.output_type != "stream"]
    assert [output.output_type for output in shown] == ["display_data"], "one output, updated in place"
    printed = "".join(output.text for output in outputs[1] if output.output_type == "stream")
    assert not printed or "IProgress" in printed, printed  # what tqdm says where ipywidgets is not installed
    assert "finished, 4 steps" in outputs[2][0].data["text/plain"]
    assert html(3).startswith("<svg") and "evaluation" in html(3)
    assert "<table>" in html(4) and "eval_loss" in html(4)
    assert "<table>" in html(6) and "<svg" in html(6) and "method.r" in html(6)
    assert outputs[7][-1].ename == "ConfigError" and "max_steps" in outputs[7][-1].evalue


class _Handle:
    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, shown: Any) -> None:
        self.shown.append(shown._repr_html_())


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> _Handle:
    """IPython's display, as the kernel of a notebook has it."""
    found = _Handle()

    def display(shown: Any, display_id: bool) -> _Handle:
        found.update(shown)
        return found

    package = types.ModuleType("IPython")
    package.get_ipython = lambda: types.SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    module = types.ModuleType("IPython.display")
    module.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return found


def test_the_view_is_that_of_the_place(handle: _Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_notebook() and isinstance(choose_view(), NotebookView)
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook() and isinstance(choose_view(), TrainingView)


def test_one_output_is_updated_and_escaped(handle: _Handle) -> None:
    with NotebookView() as view:
        view(Note(0, message="<b>careful</b>"))
        for number in range(1, 50):
            view(step(number, 1.0))
        view(Evaluation(49, eval_loss=0.5, of="adapter", best_step=49))
    assert len(handle.shown) < 10, "messages to the browser are few"
    assert "&lt;b&gt;careful" in handle.shown[-1] and "0.5000" in handle.shown[-1]


def test_an_error_leaves_the_bar_where_it_was(handle: _Handle) -> None:
    with pytest.raises(KeyboardInterrupt), NotebookView():
        raise KeyboardInterrupt
    assert "interrupted" in handle.shown[-1]
