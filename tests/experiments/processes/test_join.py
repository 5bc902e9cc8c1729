"""Processes that cannot meet, or devices that are not there, end in a line, in time."""

import pathlib
import socket

import pytest

from experiments.processes.children import free_port
from tests.experiments.runs import ROOT, command, run_together

TRAIN = command("train", f"--config={ROOT}/configs/tiny.py", "--devices=1")


def group(coordinator: str, num_processes: int, process_id: int) -> list[str]:
    return [
        f"--coordinator={coordinator}",
        f"--num_processes={num_processes}",
        f"--process_id={process_id}",
        "--join_seconds=3",
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run every case at once: most of their time they wait."""
    folder = tmp_path_factory.mktemp("join")
    alone = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost"}
    alone |= {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    # `cuda` is not there in a way of its own: JAX has no message for it.
    absent = "rocm" if pathlib.Path("/dev/nvidia0").exists() else "cuda"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = {
            "no coordinator": (["--num_processes=2"], {}),
            "no number": ([f"--coordinator=localhost:{free_port()}"], {}),
            "no port": (group("localhost", 2, 0), {}),
            "no such port": (group("localhost:65536", 2, 0), {}),
            "too high": (group("localhost:1234", 2, 2), {}),
            "no such host": (group("no.such.host.invalid:1234", 2, 1), {}),
            "port taken": (group(f"localhost:{port}", 2, 0), {}),
            "not JAX": (group(f"localhost:{port}", 2, 1), {}),
            "nobody there": (group(f"localhost:{free_port()}", 2, 1), {}),
            "alone in a step": (["--join_seconds=3"], alone),
            "no plugin": ([], {"JAX_PLATFORMS": absent}),
            "no tpu": ([], {"JAX_PLATFORMS": "tpu"}),
            "no such platform": ([], {"JAX_PLATFORMS": "abacus"}),
            "below none": (["--devices=-1"], {}),
            "too many": (["--devices=1000000000"], {}),
        }
        found = run_together(
            [
                ([*TRAIN, f"--workdir={folder}/new", *flags], environ)
                for flags, environ in cases.values()
            ],
            check=False,
        )
    assert not (folder / "new").exists()
    return dict(zip(cases, found, strict=True))


SAYS = {
    "no coordinator": "--num_processes=2 --process_id=None given without --coordinator",
    "no number": "given, but --num_processes=None --process_id=None; give all three",
    "no port": "--coordinator=localhost: expected HOST:PORT",
    "no such port": "--coordinator=localhost:65536: expected HOST:PORT",
    "too high": "--process_id=2: with --num_processes=2 it must be from 0 to 1",
    "no such host": "the name of the host 'no.such.host.invalid' is not known",
    "port taken": "Address already in use",
    "not JAX": "waited 3 s in vain for all 2 processes",
    "nobody there": "waited 3 s in vain for all 2 processes",
    "alone in a step": "waited 3 s in vain for all 4 processes",
    "no plugin": "there is no device of JAX_PLATFORMS=",
    "no tpu": "there is no device of JAX_PLATFORMS=tpu",
    "no such platform": "there is no device of JAX_PLATFORMS=abacus",
    "below none": "--devices=-1",
    "too many": "--devices=1000000000",
}


def test_each_ends_in_a_line(results):
    for name, result in results.items():
        assert result.returncode == 2, (name, result)
        assert SAYS[name] in result.stderr, (name, result)
        # One line, or two: for whom it waited, and that it did in vain.
        *before, last = result.stderr.strip().splitlines()
        assert last.startswith("error: "), (name, result)
        assert len(before) <= 1, (name, result)


def test_a_wait_says_for_whom_and_until_when(results):
    for name in ("not JAX", "nobody there", "alone in a step"):
        line = results[name].stderr.splitlines()[0]
        assert line.startswith("waiting for all") and ", until " in line, name


def test_a_proxy_of_the_environment_is_passed_by(tmp_path):
    """Nothing listens at the proxy. The processes meet, then find that steps is 0."""
    proxies = dict.fromkeys(
        ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"), "http://127.0.0.1:9"
    )
    proxies["no_proxy"] = "other.host"
    port = free_port()
    flags = [*TRAIN, f"--workdir={tmp_path}/new", "--config.steps=0"]
    results = run_together(
        [
            ([*flags, *group(f"127.0.0.1:{port}", 2, index), "--join_seconds=30"], proxies)
            for index in (0, 1)
        ],
        check=False,
    )
    for result in results:
        assert result.returncode == 2 and "error: steps is 0" in result.stderr, result
        assert "proxy" not in result.stderr
