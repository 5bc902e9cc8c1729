"""One of several processes joined by measured links; another process starts it.

Each line of input is a number of steps to take. The answer is a line of JSON: the seconds
of each step, and the bytes and packets that this host's interface sent. With 0 steps it
waits for a second.
"""

import json
import pathlib
import sys
import time

import jax

from experiments.processes import join
from experiments.processes.messages import user_errors
from experiments.processes.namespaces import INTERFACE
from experiments.run import startup
from experiments.run.check import check
from experiments.run.trial import build_trial
from lm.data.prepare import prepare
from parallel.cost.ledger import step_ledger

join.define_flags()
CONFIG = startup.define_config()
COUNTERS = pathlib.Path(f"/sys/class/net/{INTERFACE}/statistics")
TCP = pathlib.Path("/proc/self/net/snmp")  # counters of the process's own namespace
SETTLE_SECONDS = 0.2  # for the last packets and acknowledgements to arrive


def counted() -> dict[str, int]:
    """Read the bytes and packets that the interface has sent, and segments sent again."""
    sent, packets = (
        int((COUNTERS / f"tx_{x}").read_text(encoding="utf-8"))
        for x in ("bytes", "packets")
    )
    names, values = (
        line.split()
        for line in TCP.read_text(encoding="utf-8").splitlines()
        if "Tcp:" in line
    )
    again = int(values[names.index("RetransSegs")])
    return {"sent": sent, "packets": packets, "again": again}


def main() -> None:
    with user_errors():
        config = startup.load_config(CONFIG)
        join.start_jax()
        mesh = check(config)
        data = prepare(config.data)
    trial = build_trial(config, data.tokenizer.get_vocab_size(), mesh, data.train)
    state, batches = trial.begin(), trial.batches(data.train, 10**6)
    sent = sum(entry.sent_bytes for entry in step_ledger(trial.step, mesh))
    print(json.dumps({"ledger_bytes": sent}), flush=True)
    for line in sys.stdin:
        before, seconds = counted(), []
        for _ in range(int(line)):
            batch = next(batches)
            start = time.perf_counter()
            state, _ = jax.block_until_ready(trial.step(state, batch))
            seconds.append(time.perf_counter() - start)
        time.sleep(SETTLE_SECONDS if seconds else 1.0)
        since = {key: value - before[key] for key, value in counted().items()}
        print(json.dumps({"seconds": seconds, **since}), flush=True)


if __name__ == "__main__":
    startup.run(main)
