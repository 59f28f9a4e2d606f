"""The notebooks in docs/notebooks run, cell by cell, and give the kinds of output that are stored in them.

The cells are run as plain Python in this process: a kernel for each notebook would cost more than the work. The
stored outputs are small, so that the site and other viewers show them; they are not compared value by value, since
sizes follow the versions of codecs. ``uv run python -m tests.test_notebooks`` runs them and stores the outputs anew.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import tempfile
import warnings
from base64 import b64encode
from pathlib import Path

import matplotlib as mpl
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs/notebooks").glob("*.ipynb"))
MAX_BYTES = 150_000


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_cell(source: str, name: str, namespace: dict) -> list[dict]:
    """Run one cell; return what a notebook would store of it: text, the value of its last expression, figures."""
    from matplotlib import pyplot as plt

    tree = ast.parse(source, name)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    outputs = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    if value is not None:
        outputs.append(
            {
                "output_type": "execute_result",
                "execution_count": None,
                "metadata": {},
                "data": {"text/plain": repr(value)},
            }
        )
    for number in plt.get_fignums():
        picture = io.BytesIO()
        plt.figure(number).savefig(picture, format="png", dpi=80, bbox_inches="tight", pil_kwargs={"optimize": True})
        shown = {"image/png": b64encode(picture.getvalue()).decode()}
        outputs.append({"output_type": "display_data", "metadata": {}, "data": shown})
    plt.close("all")
    return outputs


def run(path: Path) -> list[list[dict]]:
    """Run a notebook in the working directory; return the outputs of each of its code cells."""
    from matplotlib import pyplot as plt

    plt.close("all")  # what an example of the documentation has drawn in this process is not the notebook's
    namespace = {"__name__": "__notebook__"}
    cells = code_cells(json.loads(path.read_text(encoding="utf-8")))
    with warnings.catch_warnings(), mpl.rc_context({"backend": "agg"}):
        warnings.simplefilter("ignore")  # of scanpy and mudata, as a reader's notebook would show and go on
        return [run_cell("".join(c["source"]), f"{path.name}[{i}]", namespace) for i, c in enumerate(cells)]


def kinds(outputs: list[dict]) -> list[tuple[str, ...]]:
    return [(o["output_type"], *o.get("data", ())) for o in outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_and_its_outputs_are_of_the_kinds_that_are_stored(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    stored = [cell["outputs"] for cell in code_cells(json.loads(path.read_text(encoding="utf-8")))]
    for number, (ran, was) in enumerate(zip(run(path), stored, strict=True)):
        assert kinds(ran) == kinds(was), f"cell {number}; run: uv run python -m tests.test_notebooks"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_small_and_says_nothing_of_the_machine_it_ran_on(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) <= MAX_BYTES
    assert not any(part in text for part in (str(Path.home()) + "/", tempfile.gettempdir() + "/", "127.0.0.1"))


def store_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell, outputs in zip(code_cells(notebook), run(path), strict=True):
        cell["outputs"], cell["execution_count"] = outputs, None
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for notebook in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            store_outputs(notebook)
            os.chdir("/")
