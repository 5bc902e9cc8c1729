"""A command on a CPU starts itself again under mimalloc, once, and visibly."""

import pytest

from experiments.processes.allocator import find_library, is_wanted, lacking
from tests.experiments.runs import run_anew, small

COMMAND = ["python", "-m", "experiments.train"]
LINE = "mimalloc keeps freed memory"


@pytest.mark.parametrize(
    "argv, environ, devices, wanted",
    [
        (COMMAND, {}, [], True),
        (COMMAND, {"JAX_PLATFORMS": "cpu"}, ["nvidia0"], True),
        (COMMAND, {"JAX_PLATFORMS": "cuda"}, [], False),
        (COMMAND, {}, ["nvidia0"], False),
        (COMMAND, {}, ["accel0"], False),
        (COMMAND, {}, ["vfio/0"], False),
        (COMMAND, {"LD_PRELOAD": "/lib/libtcmalloc.so"}, [], False),
        ([*COMMAND, "--allocator=system"], {}, [], False),
        ([*COMMAND, "--allocator", "system"], {}, [], False),
        ([*COMMAND, "--allocator=mimalloc"], {}, [], True),
    ],
)
def test_wanted_on_a_cpu_where_nobody_chose(tmp_path, argv, environ, devices, wanted):
    for name in devices:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert is_wanted(argv, environ, tmp_path) == wanted


def test_an_import_gives_memory_back(tmp_path):
    argv = ["python", "-m", "experiments.import_hf", "--model=a"]
    given = lacking(argv, {}, tmp_path)
    assert given == {"MALLOC_MMAP_THRESHOLD_": "65536"}
    assert lacking(argv, given, tmp_path) == {}  # and starts no third time
    assert lacking(COMMAND, {"LD_PRELOAD": "a"}, tmp_path) == {}


@pytest.mark.skipif(not find_library(), reason="the package has no wheel for this system")
def test_a_command_runs_under_it_unless_switched_off(tmp_path, monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    corpus = [*small(tmp_path), "--dry_run"]
    assert run_anew("train", *corpus).stderr.count(LINE) == 1
    assert LINE not in run_anew("train", *corpus, "--allocator=system").stderr
