"""How bytes get to another host sooner: streams, batches, compression, a cache.

python -m experiments.studies.transfer --config=configs/tiny.py [--only=streams] [--quick]

Needs Linux, root and zstandard (requirements-data.txt). Sends between two emulated hosts
(experiments/processes/network); compresses the state of the config's model after a few
steps, and its rows of tokens. Adds lines to results/transfer.jsonl, skips those that are
there, and fills in the tables of docs/questions/how-are-bytes-sent.md.
"""

import importlib.util
import pathlib
import random
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import flags

from experiments.processes import join, namespaces
from experiments.processes.messages import user_errors
from experiments.processes.network.emulator import network
from experiments.processes.network.link import Link
from experiments.processes.network.priority import first_of_all
from experiments.run import startup
from experiments.run.check import check
from experiments.run.trial import build_trial
from experiments.studies.transfer.packing import shuffled, unshuffled
from experiments.studies.transfer.sending import by_streams, in_batches, missing_only
from experiments.studies.transfer.tables import transfer_tables
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line, measure_missing, read
from lm.data.prepare import prepare

join.define_flags()
CONFIG = startup.define_config()
KINDS = ["streams", "messages", "cache", "compression"]
ONLY = flags.DEFINE_list("only", KINDS, "Which parts to measure.")
IS_QUICK = flags.DEFINE_bool("quick", False, "Measure a part of the streams.")
RESULTS = flags.DEFINE_string(
    "results",
    "results/transfer.jsonl",
    "File of results, to which lines of JSON are added.",
)
PAGE = define_page("docs/questions/how-are-bytes-sent.md")
RATE = 100e6  # bits a second of the link
QUEUE = 1_250_000  # bytes: a tenth of a second at this rate
STREAM_BYTES, MESSAGE_BYTES, MESSAGES = 4_000_000, 1000, 100
CACHED_BYTES, PIECE = 8_000_000, 1 << 18
STEPS = 20  # of training, before the state is compressed
REPEATS = 3


def stream_heads() -> list[Line]:
    rtts, losses = ((50,), (0, 1)) if IS_QUICK.value else ((10, 50, 150), (0, 0.1, 1))
    return [
        {"member": "streams", "congestion": c, "rtt": rtt, "loss": loss, "streams": k}
        for c in ("reno", "bbr")
        for rtt in rtts
        for loss in losses
        for k in (1, 4, 16)
    ]


def measure_streams(head: Line) -> Line:
    link = Link(delay=head["rtt"] / 2000, rate=RATE, queue=QUEUE, loss=head["loss"] / 100)
    data = random.Random(0).randbytes(STREAM_BYTES)
    with network(2, link, congestion=head["congestion"]) as net, first_of_all():
        seconds = by_streams(data, head["streams"])
        overflowed = net.counters()[0, 1].overflowed
    return {"seconds": round(seconds, 4), "overflowed": overflowed}


def message_heads() -> list[Line]:
    return [
        {"member": "messages", "rtt": rtt, "batch": size}
        for rtt in (0, 1, 10, 50)
        for size in (1, 10, MESSAGES)
    ]


def measure_messages(head: Line) -> Line:
    messages = [bytes(MESSAGE_BYTES)] * MESSAGES
    with network(2, Link(delay=head["rtt"] / 2000, rate=RATE)), first_of_all():
        return {"seconds": round(in_batches(messages, head["batch"]), 4)}


def measure_cache(head: Line) -> Line:
    """Send data that another sending, of the same data but for a change, went before."""
    rng = random.Random(0)
    before = rng.randbytes(CACHED_BYTES)
    more = rng.randbytes(CACHED_BYTES // 100)
    after = {
        "all new": rng.randbytes(CACHED_BYTES),
        "nothing new": before,
        "1 % more at the end": before + more,
        "1 % more at the beginning": more + before,
    }[head["change"]]
    with network(2, Link(delay=0.025, rate=RATE)), first_of_all():
        cache: dict[bytes, bytes] = {}
        missing_only(before, PIECE, cache)
        seconds, sent = missing_only(after, PIECE, cache)
    return {"seconds": round(seconds, 4), "sent": sent, "bytes": len(after)}


def compressors() -> dict[str, tuple[Callable, Callable]]:
    """Return name -> functions of (bytes, width of a number) that pack and unpack."""
    import zstandard  # here, because the other parts do without it

    found = {}
    for level in (1, 3):
        pack = zstandard.ZstdCompressor(level=level).compress
        unpack = zstandard.ZstdDecompressor().decompress
        found[f"zstd {level}"] = (
            lambda data, width, f=pack: f(data),
            lambda data, width, f=unpack: f(data),
        )
        found[f"shuffle, zstd {level}"] = (
            lambda data, width, f=pack: f(shuffled(data, width)),
            lambda data, width, f=unpack: unshuffled(f(data), width),
        )
    return found


def arrays() -> dict[str, list[np.ndarray]]:
    """Train for some steps; return what a checkpoint and the prepared rows hold."""
    with user_errors():
        config = startup.load_config(CONFIG)
        join.start_jax()
        mesh = check(config)
        data = prepare(config.data)
    config.steps = STEPS
    trial = build_trial(config, data.tokenizer.get_vocab_size(), mesh, data.train)
    for _, last in trial.train(data.train):
        state = last
    opt = [x for x in jax.tree.leaves(state.opt) if x.ndim]
    return {
        "parameters": [np.asarray(x) for x in jax.tree.leaves(state.params)],
        "optimizer state": [np.asarray(x) for x in opt],
        "rows of tokens": [np.asarray(data.train.tokens[:10_000])],
        "segments of rows": [np.asarray(data.train.segments[:10_000])],
    }


def measure_compression(head: Line, held: dict[str, list[np.ndarray]]) -> Line:
    """Pack and unpack each array; the median of some rounds, in seconds of a core."""
    pack, unpack = compressors()[head["how"]]
    chosen = [(x.tobytes(), x.dtype.itemsize) for x in held[head["what"]]]
    rounds = []
    for _ in range(REPEATS):
        start = time.thread_time()  # a busy machine does not change it
        packed = [pack(*one) for one in chosen]
        middle = time.thread_time()
        again = [unpack(x, width) for x, (_, width) in zip(packed, chosen, strict=True)]
        rounds.append((middle - start, time.thread_time() - middle))
    if again != [data for data, _ in chosen]:
        raise RuntimeError(f"{head['how']} did not give {head['what']} back")
    packing, unpacking = (statistics.median(x) for x in zip(*rounds, strict=True))
    return {
        "bytes": sum(len(data) for data, _ in chosen),
        "packed": sum(map(len, packed)),
        "pack_seconds": packing,
        "unpack_seconds": unpacking,
    }


def check_flags() -> None:
    """Raise ValueError for unknown parts, and for what a part needs and is not here."""
    for name in ONLY.value:
        if name not in KINDS:
            raise ValueError(f"--only={name}: choose among {', '.join(KINDS)}")
    if set(ONLY.value) - {"compression"}:
        namespaces.require()
    if "compression" in ONLY.value and not importlib.util.find_spec("zstandard"):
        raise ValueError(
            "compression needs zstandard: pip install -r requirements-data.txt"
        )
    if PAGE.value:
        check_names(pathlib.Path(PAGE.value), set(transfer_tables([])))


def main() -> None:
    with user_errors():
        check_flags()
    file = pathlib.Path(RESULTS.value)
    changes = (
        *("all new", "nothing new"),
        *("1 % more at the end", "1 % more at the beginning"),
    )
    if "streams" in ONLY.value:
        measure_missing(file, stream_heads(), measure_streams)
    if "messages" in ONLY.value:
        measure_missing(file, message_heads(), measure_messages)
    if "cache" in ONLY.value:
        heads = [{"member": "cache", "change": change} for change in changes]
        measure_missing(file, heads, measure_cache)
    if "compression" in ONLY.value:
        held = arrays()
        heads = [
            {"member": "compression", "what": what, "how": how}
            for what in held
            for how in compressors()
        ]
        measure_missing(file, heads, lambda head: measure_compression(head, held))
    if PAGE.value:
        with user_errors():
            fill(pathlib.Path(PAGE.value), transfer_tables(read(file)))


if __name__ == "__main__":
    startup.run(main)
