"""Topologies of absent TPUs: what is refused, and what is said when the compiler aborts."""

import importlib.metadata
import os
import re

import pytest

from experiments.processes import topology
from experiments.processes.topology import (
    check_libtpu,
    check_machine,
    failed_check,
    found_libtpu,
    topology_name,
    wanted_libtpu,
)
from tests.experiments.runs import ROOT, run, small, write_corpus


@pytest.mark.parametrize(
    "name", ["tpu-v5e:2x4", "tpu-v5p:2x2x2", "tpu-v5e:1x1", "tpu-tpu7x:2x2x1"]
)
def test_a_topology_is_named_as_libtpu_names_it(name):
    assert topology_name(name) == name.removeprefix("tpu-")


@pytest.mark.parametrize(
    "name", ["v5e:2x4", "tpu-v5e", "tpu-v5e:2x", "gpu-h100:8", "", "tpu-:2x4"]
)
def test_other_names_are_refused_with_an_example(name):
    with pytest.raises(ValueError, match="expected tpu-GENERATION:SIZE, such as tpu-v5e"):
        topology_name(name)


@pytest.mark.parametrize(
    "system, machine", [("darwin", "arm64"), ("linux", "aarch64"), ("win32", "AMD64")]
)
def test_other_machines_are_told_that_there_is_no_libtpu(system, machine):
    with pytest.raises(
        ValueError, match=f"linux on x86_64, and this is {system} on {machine}"
    ):
        check_machine(system, machine)


def test_this_jax_names_its_libtpu():
    """pip reads the same line: the pin of requirements-aot.txt is jax[tpu]'s own."""
    assert re.fullmatch(r"0\.0\.\d+\.\*", wanted_libtpu())
    text = (ROOT / "requirements-aot.txt").read_text()
    assert re.search(r"^jax\[tpu\]", text, re.MULTILINE)


def library(folder, version: str | None):
    """Lay out a library as a wheel does, without its contents."""
    file = folder / "libtpu" / "libtpu.so"
    file.parent.mkdir()
    file.touch()
    if version:
        info = folder / f"libtpu-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: libtpu\nVersion: {version}\n")
    return str(file)


@pytest.mark.parametrize("version, suits", [
    ("right", True), (None, True), ("0.0.4.1", False), ("1.0.0", False),
])  # fmt: skip
def test_the_version_of_the_library_that_jax_would_load(
    version, suits, tmp_path, monkeypatch
):
    if version == "right":
        version = wanted_libtpu().replace("*", "1")
    monkeypatch.setenv("TPU_LIBRARY_PATH", library(tmp_path, version))
    assert found_libtpu() == (version or "")
    if suits:
        check_libtpu()
    else:
        with pytest.raises(ValueError) as raised:
            check_libtpu()
        assert version in str(raised.value) and wanted_libtpu() in str(raised.value)


def test_no_library_and_a_path_to_nothing(monkeypatch, tmp_path):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda **_: iter(()))
    with pytest.raises(ValueError, match=r"libtpu 0.*there is none; pip install -r req"):
        check_libtpu()
    monkeypatch.setenv("TPU_LIBRARY_PATH", str(tmp_path / "libtpu.so"))
    with pytest.raises(ValueError, match="is not a file; unset it"):
        check_libtpu()


ABORT = """warning: something
F1125 23:10:22.044513   18569 spmd_partitioner.cc:560] Check failed: a == b (0 vs. 1)
*** Check failure stack trace: ***
    @     0x7f869fa9bc54  absl::log_internal::LogMessage::SendToLog()
F1125 23:10:22.044513   18569 spmd_partitioner.cc:560] Check failed: a == b (0 vs. 1)
"""


def test_an_abort_is_one_line(monkeypatch):
    assert failed_check(ABORT) == "spmd_partitioner.cc:560] Check failed: a == b (0 vs. 1)"
    assert failed_check("error: something else") == ""
    program = f"import os, sys; sys.stderr.write({ABORT!r}); sys.stderr.flush(); os.abort()"
    monkeypatch.setattr(topology.sys, "orig_argv", ["python", "-c", program])
    with pytest.raises(ValueError) as raised:
        topology.run_child("tpu-v5e:2x4", "strategy tensor, attention kernel splash")
    assert str(raised.value) == (
        "the TPU compiler aborted on strategy tensor, attention kernel splash: "
        "spmd_partitioner.cc:560] Check failed: a == b (0 vs. 1)"
    )


def test_a_child_that_fails_hands_on_its_code_and_its_message(monkeypatch, capfd):
    program = "import os, sys; print(os.environ['LOCKSTEP_TOPOLOGY']); sys.exit('too bad')"
    monkeypatch.setattr(topology.sys, "orig_argv", ["python", "-c", program])
    assert topology.run_child("tpu-v5e:2x4", "anything") == 1
    assert capfd.readouterr() == ("tpu-v5e:2x4\n", "too bad\n")


def test_only_a_dry_run_takes_a_topology(tmp_path):
    write_corpus(tmp_path / "corpus", 1)
    flags = [*small(tmp_path), f"--workdir={tmp_path / 'run'}", "--topology=tpu-v5e:2x4"]
    result = run("train", *flags, check=False)
    assert result.returncode == 2 and not (tmp_path / "run").exists()
    assert result.stderr == ("error: --topology compiles and runs nothing; add --dry_run\n")
    assert topology.CHILD not in os.environ
