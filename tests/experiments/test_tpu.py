"""Every strategy, codec and algorithm through the real compiler of TPUs, without a TPU.

Needs libtpu (requirements-aot.txt); the tests are skipped without it. A group of members is
compiled in one child process, because the compiler takes seconds to start. If it aborts,
the member that it was at fails, and another child compiles the rest.
"""

import json
import os
import platform
import subprocess
import sys

import pytest

from experiments.processes.topology import ENVIRONMENT, check_libtpu, check_machine
from parallel.exchange.algorithms import ALGORITHMS
from parallel.exchange.config import CODECS
from parallel.strategies import STRATEGIES
from tests.experiments import tpu_worker
from tests.experiments.runs import ROOT

MEMBERS = {
    "sharded": ["jit", "shard_map", "zero1", "zero1_whole", "zero2", "fsdp", "hsdp"],
    "tensor": ["tensor", "hybrid"],
    "pipelines": ["gpipe", "1f1b", "interleaved"],
    "local": ["local_sgd-8", "post_local_sgd-8", "diloco-50", "streaming_diloco-50"],
    "algorithms": [name for name in ALGORITHMS if name != "psum"],  # that is shard_map's
    "codecs": [
        "bfloat16", "int8", "int4", "int2", "ternary", "sign", "majority_vote",
        "top_k-1%", "chunk_top_k-1%",
        "random_k-1%", "dgc-1%", "power_sgd-4", "delay-1", "diloco-50-int4",
    ],
}  # fmt: skip
TOPOLOGIES = ["v5e:2x4", "v5p:2x2x2"]


def test_the_groups_hold_every_strategy_and_codec():
    members = [tpu_worker.MEMBERS[name] for group in MEMBERS.values() for name in group]
    strategies = {member["parallel.strategy"] for member in members}
    assert strategies == {name for name, row in STRATEGIES.items() if row.ahead}
    codecs = {member.get("parallel.exchange.codec", "none") for member in members}
    assert codecs == {"none", *CODECS}


def reason_to_skip() -> str:
    try:
        check_machine(sys.platform, platform.machine())
        check_libtpu()
    except ValueError as error:
        return str(error)
    return ""


def compiled(topology: str, members: list[str]) -> dict[str, dict]:
    """Return what the worker says of each member; an abort is an error of its member."""
    said: dict[str, dict] = {}
    while left := [member for member in members if member not in said]:
        child = subprocess.run(
            [sys.executable, "-m", "tests.experiments.tpu_worker", topology, *left],
            env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | ENVIRONMENT,
            cwd=ROOT,
            capture_output=True,
            encoding="utf-8",
        )
        lines = [json.loads(line) for line in child.stdout.splitlines()]
        said |= {line["member"]: line for line in lines if "took" in line}
        if child.returncode:
            assert lines, child.stderr[-3000:]
            said[lines[-1]["member"]] = {"error": f"aborted: {child.stderr[:500]}"}
    return said


@pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("group", MEMBERS)
def test_a_group_compiles(topology, group):
    said = compiled(topology, MEMBERS[group])
    assert not {m: line["error"] for m, line in said.items() if "error" in line}
    for member, line in said.items():
        assert sum(line["sent"].values()) > 0, member
