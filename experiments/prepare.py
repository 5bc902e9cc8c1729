"""Prepare the text of a config: clean it, learn its tokens, pack it into rows.

python -m experiments.prepare --config=configs/tiny.py \
    [--config.data.source=text --config.data.path=FOLDER ... --executor=ray]

Leaves the rows in the cache, where `train` finds them, and prints what was done: documents,
what each stage dropped, tokens, seconds. The same command goes on where a killed one was.
The stages of cleaning run on all cores of this machine, or with --executor=ray on Ray: it
is started here, or joined with --ray_address. The rows are the same to the byte. The
machines of a cluster need what requirements.txt lists; this process reads the corpus, and
writes the rows. `train` prepares what the cache does not have, on the cores of its machine.
"""

import pathlib
import time
from functools import partial

from absl import flags

import lm
from experiments.processes.messages import human, size, user_errors
from experiments.processes.ray_tasks import RayTasks
from experiments.run import startup
from lm.data.cleaning.cores import Cores, Start, num_cores
from lm.data.config import DataConfig
from lm.data.prepare import Data, prepare, state
from lm.data.sources.table import PAIR_SOURCES

CONFIG = startup.define_config()
EXECUTOR = flags.DEFINE_enum(
    "executor", "local", ["local", "ray"], "What the stages of cleaning run on."
)
WORKERS = flags.DEFINE_integer(
    "workers", 0, "Processes that clean on this machine; 0: one a core.", lower_bound=0
)
RAY_ADDRESS = flags.DEFINE_string(
    "ray_address", "", "Address of a Ray cluster; empty: Ray is started here."
)


def main() -> None:
    with user_errors():
        config = startup.load_config(CONFIG)
        config.validate()
        executor = chosen_executor(config.data)
        before, began = state(config.data), time.perf_counter()
        data = prepare(config.data, executor)
    seconds = time.perf_counter() - began
    for line in told(data, before, seconds):
        print(line)


def chosen_executor(config: DataConfig) -> Start:
    """Return what starts the executor; ValueError for flags that do not fit together."""
    if EXECUTOR.value == "local":
        if RAY_ADDRESS.value:
            raise ValueError(
                f"--ray_address={RAY_ADDRESS.value} has no effect with --executor=local; "
                "give --executor=ray"
            )
        return partial(Cores, WORKERS.value)
    if config.source in PAIR_SOURCES:
        raise ValueError(
            f"--executor=ray has no effect with data.source={config.source}: no stage "
            "cleans pairs of texts; leave it out"
        )
    if RAY_ADDRESS.value and WORKERS.value:
        raise ValueError(
            f"--workers={WORKERS.value} has no effect on the cluster at "
            f"--ray_address={RAY_ADDRESS.value}, all of whose cores are used; leave it out"
        )
    code = [pathlib.Path(lm.__file__).parent]
    return partial(RayTasks, RAY_ADDRESS.value, WORKERS.value or num_cores(), code)


def told(data: Data, before: str, seconds: float) -> list[str]:
    """Return lines about prepared rows, and about the time if all were made in it."""
    meta, lines = data.meta, []
    for split in ("train", "validation", "shifted"):
        if split in meta:
            rows = meta[split]
            lines.append(
                f"{split:11} {human(rows['targets'])} target tokens in {rows['rows']:,} "
                f"rows, {rows['padding']:.1%} of their positions without one"
                + told_documents(meta, split)
            )
    done = {
        "absent": f"prepared in {seconds:.1f} s",
        "begun": f"a preparation that was killed went on for {seconds:.1f} s",
        "done": "the cache had them already",
    }[before]
    if num_bytes := meta.get("bytes"):
        done = f"{size(num_bytes)} of text; {done}"
        if before == "absent":
            done += f", {num_bytes / 1e6 / seconds:.2f} MB/s"
    return [*lines, f"{'text':11} {done}", f"{'rows':11} {meta['fingerprint']}"]


def told_documents(meta: dict, split: str) -> str:
    """Return how many documents a split has, and what dropped others; "" for pairs."""
    if "documents" not in meta:
        return ""
    dropped = [
        f"{name} dropped {splits[split]['dropped']:,}"
        for name, splits in meta["cleaning"].items()
        if splits.get(split, {}).get("dropped")
    ]
    return "; ".join(["", f"{meta['documents'][split]:,} documents", *dropped])


if __name__ == "__main__":
    startup.run(main)
