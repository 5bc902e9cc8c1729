"""Tokens per second of Lockstep, bare JAX and nanoGPT on the same cores, in turns.

python -m experiments.studies.benchmark --shape=small --rounds=9
    [--compute=bfloat16] [--only=lockstep,bare]
    [--nanogpt=FOLDER --pytorch_python=venv/bin/python]

Prints a table. Each side is its own process and trains the same GPT-2 on the same random
tokens. In a round, one side after the other takes a few steps. The figures are medians over
the rounds. A ratio is the median of the ratios within a round, because other users of the
machine slow all sides of a round alike. Products of 4096 x 4096 matrices (the machine's
limit) and the loading of batches alone take turns too.
"""

import pathlib
import sys
import time

from absl import flags

from experiments.processes.children import free_port
from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.studies.benchmark.figures import report
from experiments.studies.benchmark.rounds import answer, end, start, turn
from experiments.studies.benchmark.shapes import SHAPES, Shape

SHAPE = flags.DEFINE_enum(
    "shape", "small", list(SHAPES), "Shape of the model and the batch."
)
COMPUTE = flags.DEFINE_enum(
    "compute", "float32", ["float32", "bfloat16"], "Type that the models compute in."
)
ROUNDS = flags.DEFINE_integer(
    "rounds", 9, "Number of rounds in which all sides take turns.", lower_bound=1
)
STEPS = flags.DEFINE_integer(
    "steps_per_round", 3, "Number of steps of each turn.", lower_bound=1
)
NANOGPT = flags.DEFINE_string(
    "nanogpt", None, "Folder of a clone of github.com/karpathy/nanoGPT."
)
PYTORCH_PYTHON = flags.DEFINE_string(
    "pytorch_python", sys.executable, "Path of a Python that has PyTorch, for --nanogpt."
)
ONLY = flags.DEFINE_list("only", None, "Names of the sides to run; default: all.")


def ours(contender: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "experiments.studies.benchmark.contender"]
    shape = [f"--shape={SHAPE.value}", f"--compute={COMPUTE.value}"]
    return [*command, *shape, f"--contender={contender}", *arguments]


def sides(shape: Shape) -> dict[str, list[list[str]]]:
    """Map the name of each side to the commands of its processes."""
    port = free_port()
    two = [
        ours(
            "lockstep",
            "--strategy=shard_map",
            f"--coordinator=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={i}",
        )
        for i in range(2)
    ]
    found = {
        "products": [ours("products")],
        "loader": [ours("loader")],
        "loader-2-workers": [ours("loader", "--workers=2")],
        "lockstep": [ours("lockstep")],
        "lockstep-system-allocator": [ours("lockstep", "--allocator=system")],
        "lockstep-jit-8-devices": [ours("lockstep", "--devices=8")],
        "lockstep-shard_map-8-devices": [
            ours("lockstep", "--devices=8", "--strategy=shard_map")
        ],
        "lockstep-zero1-8-devices": [ours("lockstep", "--devices=8", "--strategy=zero1")],
        "lockstep-2-processes": two,
        "bare": [ours("bare", "--allocator=system")],
        "bare-mimalloc": [ours("bare")],
    }
    if NANOGPT.value:
        script = str(pathlib.Path(__file__).with_name("nanogpt.py"))
        numbers = [
            shape.vocab_size,
            shape.width,
            shape.num_layers,
            shape.num_heads,
            shape.seq_len,
            shape.batch_size,
        ]
        for variant in ("eager", "fused", "compiled"):
            found[f"nanogpt-{variant}"] = [
                [
                    *(PYTORCH_PYTHON.value, script, NANOGPT.value, variant),
                    *(COMPUTE.value, *map(str, numbers)),
                ]
            ]
    return found


def chosen_sides(shape: Shape) -> dict[str, list[list[str]]]:
    """Return the sides that --only names; ValueError if there is no such side."""
    known = sides(shape)
    names = ONLY.value or list(known)
    if unknown := set(names) - set(known):
        raise ValueError(
            f"--only={','.join(sorted(unknown))}: choose among {', '.join(known)}"
        )
    return {name: known[name] for name in known if name in names}


def main() -> None:
    shape = SHAPES[SHAPE.value]
    with user_errors():
        chosen = chosen_sides(shape)
    running, first_step, loss = {}, {}, {}
    try:
        for name, commands in chosen.items():
            began = time.perf_counter()
            running[name] = start(commands)
            loss[name] = answer(running[name])["loss"]
            first_step[name] = time.perf_counter() - began
            print(f"{name}: first step after {first_step[name]:.1f} s", file=sys.stderr)
        seconds = {name: [] for name in running}
        peak = {}
        for index in range(ROUNDS.value):
            for name, processes in running.items():
                result = turn(processes, STEPS.value)
                if not result["finite"]:
                    raise RuntimeError(f"{name}: the loss is not finite")
                seconds[name].append(result["seconds"] / STEPS.value)
                peak[name] = result["peak"]
            print(f"round {index + 1} of {ROUNDS.value}", file=sys.stderr)
    finally:
        end([process for processes in running.values() for process in processes])
    report(shape, seconds, peak, first_step, loss)


if __name__ == "__main__":
    startup.run(main)
