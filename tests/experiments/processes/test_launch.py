"""The launcher's own errors, and those of what it starts."""

from experiments.processes.children import fewer
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
