"""Compile members for absent TPUs: python -m tests.experiments.tpu_worker TOPOLOGY NAME...

Prints for each member a line of JSON before it is compiled, and one after. The last member
without a second line is the one that ended the process.
"""

import json
import sys
import time

from configs import fields
from configs.base import Experiment
from configs.sweeps import strategies
from experiments.planning.explanation import expected_bytes
from experiments.processes.topology import described
from experiments.run.check import check
from experiments.run.trial import build_trial
from lm.data.config import DataConfig
from lm.models.transformer.config import TransformerConfig
from lm.optim import OptimConfig
from lm.precision import PrecisionConfig
from parallel.cost.ledger import step_ledger
from parallel.exchange.algorithms import ALGORITHMS

MEMBERS = strategies.MEMBERS | {
    "hierarchical": {
        "parallel.strategy": "shard_map",
        "parallel.slice": 2,
        "parallel.data": 4,
        "parallel.exchange.algorithm": "hierarchical",
    }
}


def small(member: str) -> Experiment:
    """Return the config of a member: a model of two layers, with splash.

    `interleaved` has four chunks of layers. Exchanges see only the gradient, so that of a
    small layer is enough for them.
    """
    exchanges = "parallel.exchange.codec" in MEMBERS[member] or member in ALGORITHMS
    model = TransformerConfig(
        width=32 if exchanges else 128,
        num_layers=4 if member == "interleaved" else 1 if exchanges else 2,
        num_heads=4,
        attention="xla" if exchanges else "auto",
        bias=False,
        norm="rmsnorm",
        positions="rotary",
        tied=False,
    )
    config = Experiment(
        data=DataConfig(vocab_size=512, seq_len=128, batch_size=16),
        model=model,
        optim=OptimConfig(learning_rate=1e-3),
        precision=PrecisionConfig(compute="bfloat16"),
    )
    return fields.override(config, MEMBERS[member])


def compiled(member: str, devices: list) -> dict:
    config = small(member)
    mesh = check(config, devices)
    trial = build_trial(config, config.data.vocab_size, mesh)
    entries = step_ledger(trial.step, mesh)
    sent: dict[str, float] = {}
    for entry in entries:
        sent[entry.kind] = sent.get(entry.kind, 0) + entry.sent_bytes
    return {
        "sent": sent,
        "kinds": sorted(config.parallel.row.kinds(config.parallel)),
        "expected": expected_bytes(config, trial, mesh),
        "overlapping": sum(entry.count for entry in entries if entry.overlap),
        "seconds": trial.compile_seconds,
    }


def main(topology: str, *members: str) -> None:
    devices = described(topology)
    for member in members:
        print(json.dumps({"member": member}), flush=True)
        began = time.perf_counter()
        try:
            line = compiled(member, devices)
        except Exception as error:
            line = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        took = round(time.perf_counter() - began, 1)
        print(json.dumps({"member": member, "took": took} | line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
