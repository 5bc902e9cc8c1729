"""The notebooks run from their first cell to the last, as in Colab without a TPU."""

import os

import nbclient
import nbformat
import pytest

from tests.experiments.runs import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_runs(file, tmp_path, monkeypatch):
    # A checkout of its own, for what the notebook leaves in runs/.
    for name in ("configs", "experiments", "lm", "parallel"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "runs").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if file.stem == "colab_tpu":
        monkeypatch.delenv("XLA_FLAGS")  # it computes more than it compiles
    notebook = nbformat.read(file, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=900, resources=resources)
    # Files for sockets, found from the folder that both sides are in: another process may
    # take a free port before the kernel does.
    monkeypatch.chdir(tmp_path)
    client.create_kernel_manager().transport = "ipc"
    client.execute()
    text = "".join(
        output.get("text", "") + "".join(output.get("data", {}).get("text/html", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    told = {"colab_tpu": "Was it worth it?", "data_parallel_from_scratch": "fsdp"}
    assert told[file.stem] in text


def test_both_are_there():
    assert [file.stem for file in NOTEBOOKS] == ["colab_tpu", "data_parallel_from_scratch"]
    assert os.environ["JAX_PLATFORMS"] == "cpu"
