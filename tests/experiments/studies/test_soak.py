"""What the studies of faults tell, from files and gradients that are made up."""

import ast
import json
import re

import numpy as np

from experiments.studies.flips.shares import (
    BITS,
    REPLICAS,
    Gradients,
    flips_table,
    found_share,
)
from experiments.studies.soak.table import soak_table
from experiments.studies.soak.tell import SAID, named, percentile, recovery, together
from tests.experiments.runs import ROOT


def test_a_flip_is_found_by_what_it_makes_of_the_norm():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(REPLICAS, 400)).astype(np.float32)
    grads = Gradients(values, np.full(REPLICAS, 10.0))
    shares = [found_share(grads, bit, 5.0, 40, rng) for bit in range(BITS)]
    # Below 2, bit 30 multiplies by 2**128: all but the few larger elements, which it makes
    # small. No bit of the mantissa, and not the sign, changes a norm of 400 such numbers.
    assert shares[30] > 0.8
    assert not any(shares[:23]) and not shares[31]
    lines = [{"bit": bit, "found": share} for bit, share in enumerate(shares)]
    before = [line | {"found": 0.5} for line in lines]  # measured once more
    table = flips_table(before + lines).splitlines()
    assert [row.split("|")[1].strip() for row in table[2:]] == [
        *map(str, range(31, 21, -1)), "0"
    ]  # fmt: skip


def test_recovery_is_from_an_end_to_the_next_start(tmp_path):
    def event(name, at, wall, elapsed, **seconds):
        told = {"event": name, "step": at, "wall": wall, "elapsed": elapsed}
        return told | {"seconds": seconds}

    events = [
        event("start", 0, 0.0, 5.0),
        event("saved", 10, 0.0, 20.0, step=10.0, checkpoint=2.0),
        event("last", 12, 0.0, 24.0, step=12.0, checkpoint=2.0),
        event("start", 10, 30.0, 4.0),
        event("saved", 20, 30.0, 20.0, step=12.0, checkpoint=3.0),
        event("end", 20, 30.0, 21.0, step=12.0, checkpoint=3.0),
    ]
    file = tmp_path / "time.jsonl"
    file.write_text("".join(json.dumps(x) + "\n" for x in events))
    found = recovery(tmp_path)
    assert (found["restarts"], found["total_seconds"]) == (1, 51.0)
    assert found["recovery_p50"] == found["recovery_p99"] == 30.0 + 4.0 - 24.0
    assert found["goodput"] == round((10.0 + 12.0) / 51.0, 4)
    line = found | {
        "seed": 1, "faults": 3, "kinds": {"kill": 2, "flipped_parameter": 1},
        "rows_lost": 0, "rows_repeated": 0, "named": {"parted": 1}, "bitwise": True,
    }  # fmt: skip
    assert "| sync | 1 | 3 | 2 | 0 | 0 | 1 of 1 | yes | 10.0 s |" in soak_table([line])
    both = together([line, line | {"bitwise": False, "recoveries": [2.0, 30.0]}])
    expected = {"faults": 6, "accepted": 1, "recovery_p50": 10.0}
    assert both | expected | {"goodput": round(44 / 102, 4)} == both


def test_what_was_said_is_counted():
    said = (
        "step 3: replicas have parted in params/a\nprocess 1 of 2 was killed by SIGKILL\n"
    )
    assert named(2 * said) == {
        "parted": 2, "damaged_checkpoint": 0, "corrupt_record": 0, "stuck": 0, "killed": 2,
        "damaged_frame": 0, "worker_died": 0, "shard_died": 0,
    }  # fmt: skip
    # Each is what some code says, however its message is made up.
    code = [f for f in (ROOT / "experiments", ROOT / "lm") for f in f.rglob("*.py")]
    strings = {
        node.value
        for file in code
        if "soak" not in file.parts
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    for words in SAID.values():
        for part in re.split(r"\\d\+|(?=;)|SIGKILL", words):
            assert any(part.strip() in each for each in strings), words
    numbers = [float(x) for x in range(1, 101)]
    assert (percentile(numbers, 0.5), percentile(numbers, 0.99)) == (51.0, 100.0)
