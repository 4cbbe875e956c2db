"""The Colab notebook, top to bottom, with a tiny preset."""

import json
import subprocess
import sys
from pathlib import Path

from cases import quick_environment

NOTEBOOK = Path(__file__).parent.parent / "experiments" / "colab_tpu.ipynb"
EXECUTE = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
nbformat.validate(notebook)
nbformat.write(notebook, sys.argv[2])
"""


def test_runs_top_to_bottom(tmp_path):
    command = [sys.executable, "-c", EXECUTE, str(NOTEBOOK), "executed.ipynb"]
    environment = quick_environment(MECO_PRESET="tiny")
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    cells = json.loads((tmp_path / "executed.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    text = "".join("".join(output.get("text", ())) for output in outputs)
    assert "effort 6: gap to the optimum" in text
    assert all((tmp_path / f"figure{n}.pdf").stat().st_size > 3000 for n in (4, 5, 6))


def test_is_stored_without_outputs_and_leaves_jax_alone():
    notebook = json.loads(NOTEBOOK.read_text())
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    source = "".join("".join(cell["source"]) for cell in notebook["cells"])
    assert "--no-deps" in source
    assert '"jax' not in source
