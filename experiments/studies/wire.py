"""Compare the ledger's bytes with those that a network interface sends in a step.

python -m experiments.studies.wire --config=configs/tiny.py [--only=shard_map,int8] \
    [--hosts=2,4]

Needs Linux and root. Adds lines to results/wire.jsonl, then fills in the table `wire` of
docs/strategies.md from all lines there.
"""

import pathlib

from absl import flags

from configs.sweeps.strategies import MEMBERS
from experiments.processes import namespaces
from experiments.processes.linked import workers
from experiments.processes.messages import user_errors
from experiments.processes.network.emulator import network
from experiments.run import startup
from experiments.sweeps.members import as_flags, known
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import measure_missing, read
from experiments.sweeps.wire_table import wire_table

ONLY = flags.DEFINE_list(
    "only",
    ["shard_map", "ring", "jit", "zero1", "fsdp", "int8", "top_k-1%"],
    "Names of the members to measure.",
)
HOSTS = flags.DEFINE_list(
    "hosts", ["2", "4"], "Numbers of hosts to measure, each a process."
)
CONFIG = flags.DEFINE_string("config", "configs/tiny.py", "Config file of all members.")
RESULTS = flags.DEFINE_string(
    "results", "results/wire.jsonl", "File of results, to which lines of JSON are added."
)
PAGE = define_page("docs/strategies.md")
HEADERS = 52  # bytes of IP and TCP with time stamps, before the payload of a packet
WARMUP, STEPS, IDLE = 3, 5, 3  # steps, steps, seconds without a step


def measure(member: str, num_hosts: int) -> dict:
    flags_of_config = [f"--config={CONFIG.value}", *as_flags(MEMBERS[member])]
    with (
        network(num_hosts),
        workers(num_hosts, flags_of_config) as (started, ledger_bytes),
    ):
        started.turn(WARMUP)
        idle = [started.turn(0) for _ in range(IDLE)]
        background = sum(x["sent"] for turn in idle for x in turn) / IDLE / num_hosts
        turn = started.turn(STEPS)
    seconds = sum(turn[0]["seconds"])
    sent, packets, again = (
        sum(x[key] for x in turn) / num_hosts for key in ("sent", "packets", "again")
    )
    return {
        "ledger_bytes": ledger_bytes,
        "sent_bytes": round((sent - background * seconds) / STEPS),
        "sent_packets": round(packets / STEPS),
        "headers": HEADERS,
        "resent_segments": round(again / STEPS, 1),
        "idle_bytes_per_second": round(background),
    }


def main() -> None:
    with user_errors():
        namespaces.require()
        members, file = known(ONLY.value), pathlib.Path(RESULTS.value)
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), {"wire"})
    heads = [
        {"member": member, "hosts": int(hosts)}
        for hosts in HOSTS.value
        for member in members
    ]
    measure_missing(file, heads, lambda head: measure(head["member"], head["hosts"]))
    if PAGE.value:
        with user_errors():
            fill(pathlib.Path(PAGE.value), {"wire": wire_table(read(file))})


if __name__ == "__main__":
    startup.run(main)
