"""The launcher's own errors, and those of what it starts."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments.processes.children import Keeper, fewer, wait
from tests.experiments.runs import command, run, run_together

FLAGS = {  # a flag -> what the message must say
    "--processes=0": "--processes=0: 0 is not an integer in the range",
    "--processes=1000000": "--processes=1000000",
    "--processes=two": "--processes=two",
    "--devices_per_process=-1": "--devices_per_process=-1",
    "--cores_per_process=-1": "--cores_per_process=-1",
    "--module=": "--module=: there is no such module",
    "--module=experiments.trian": "--module=experiments.trian: there is no such module",
    "--module=no.such.module": "--module=no.such.module: there is no such module",
    "--module=..": "there is no such module",
    "--config=configs/tiny.py": "flags of what it starts come after --",
}


def test_each_wrong_flag_ends_in_a_line():
    commands = [(command("launch", flag), {}) for flag in FLAGS]
    for flag, result in zip(FLAGS, run_together(commands, check=False), strict=True):
        assert result.returncode == 2, (flag, result)
        assert FLAGS[flag] in result.stderr, (flag, result)
        assert len(result.stderr.strip().splitlines()) == 1, (flag, result)


def test_an_error_of_what_it_starts_is_told_once():
    result = run("launch", "--", "--config=no/such.py", "--workdir=x", check=False)
    assert result.returncode == 2
    assert result.stderr == "error: no/such.py: there is no such file\n"


def test_fewer_processes_share_the_same_rows():
    assert [fewer(n) for n in (1, 2, 3, 4, 6, 7, 8, 9)] == [1, 1, 1, 2, 3, 1, 4, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks with threads")
def test_of_those_that_failed_at_once_the_killed_one_is_the_first():
    processes = [
        subprocess.Popen(["sh", "-c", f"kill -{end.value} $$" if end else "exit 1"])
        for end in (None, signal.SIGABRT, signal.SIGKILL)
    ]
    for process in processes:
        process.wait()
    assert wait(processes) == 2 and wait(processes[:2]) == 0


def test_a_keeper_becomes_a_command_again_and_again(tmp_path):
    log = tmp_path / "log"
    core = min(os.sched_getaffinity(0))
    with log.open("ab") as out:
        keeper = Keeper("timeit", list, out)  # timeit runs the code that it is given
    for code, expected in [
        ("import os, sys; print(sys.argv[1:3], os.sched_getaffinity(0))", 0),
        ("import os; os._exit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import no_such_module", 1),
    ]:
        child = keeper.begin(["-n1", "-r1", code], {core})
        assert child.wait(20) == expected and child.poll() == expected
        child.kill()  # nothing is left to kill
    assert f"['-n1', '-r1'] {{{core}}}" in log.read_text()
    sleeps = ["-n1", "-r1", "import time; time.sleep(60)"]
    for how in ("terminate", "kill"):
        child = keeper.begin(sleeps, {core})
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.2)
        getattr(child, how)()
        assert child.wait(20) in (-signal.SIGTERM, -signal.SIGKILL)
    child = keeper.begin(sleeps, {core})
    while not child.pid:
        child.poll()
    keeper.process.kill()
    assert child.wait(20) == -signal.SIGKILL and keeper.is_over()
    keeper.close()
    deadline = time.monotonic() + 10
    while is_alive(child.pid):  # its child ends with it
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for does not."""
    file = pathlib.Path(f"/proc/{pid}/stat")
    return file.exists() and file.read_text().rpartition(")")[2].split()[0] not in "ZX"
