"""Tokens per second of Lockstep, bare JAX and nanoGPT on the same cores, in turns.

python -m experiments.benchmark --shape=small --rounds=9
    [--nanogpt=FOLDER --pytorch_python=venv/bin/python] [--only=lockstep,bare]

Each side is a process of its own and trains the same GPT-2 on the same random tokens.
One after the other takes a few steps; the figures are medians over the rounds, and each
ratio is the median of the ratios within a round, for other users of the machine slow all
sides alike. Also timed in turns: products of 4096 x 4096 matrices, the machine's limit, and
the loading of batches alone.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

from absl import app, flags

from experiments.contender import LOADER_BATCHES, PRODUCT, SHAPE, SHAPES, Shape
from experiments.launch import free_port, own_cores

ROUNDS = flags.DEFINE_integer("rounds", 9, "How often all take turns.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps_per_round", 3, "Steps of each turn.", lower_bound=1)
NANOGPT = flags.DEFINE_string("nanogpt", None, "A clone of github.com/karpathy/nanoGPT.")
PYTORCH_PYTHON = flags.DEFINE_string(
    "pytorch_python", sys.executable, "A Python that has PyTorch."
)
ONLY = flags.DEFINE_list("only", None, "The sides to run; default: all.")
REFERENCES = ("nanogpt-eager", "lockstep")  # what the others are compared with


def start(commands: list[list[str]]) -> list[subprocess.Popen]:
    """Start the processes of one side, each on its share of the cores."""
    pipe = subprocess.PIPE
    processes = []
    for index, command in enumerate(commands):
        processes.append(
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        )
        os.sched_setaffinity(processes[-1].pid, own_cores(index, len(commands)))
    return processes


def ours(contender: str, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "-m", "experiments.contender", f"--shape={SHAPE.value}"),
        f"--contender={contender}",
        *arguments,
    ]


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
                [PYTORCH_PYTHON.value, script, NANOGPT.value, variant, *map(str, numbers)]
            ]
    return found


def answer(processes: list[subprocess.Popen]) -> dict:
    """Return the first process's next JSON line, once all have given theirs."""
    answers = []
    for process in processes:
        for line in process.stdout:
            if line.startswith("{"):
                answers.append(json.loads(line))
                break
        else:
            raise RuntimeError(f"{process.args} ended:\n{process.stderr.read()[-2000:]}")
    answers[0]["peak"] = sum(a.get("peak", 0) for a in answers)
    return answers[0]


def turn(processes: list[subprocess.Popen], steps: int) -> dict:
    for process in processes:
        process.stdin.write(f"{steps}\n")
        process.stdin.flush()
    return answer(processes)


def end(processes: list[subprocess.Popen]) -> None:
    """Close their input, so that each ends and takes its own children along."""
    for process in processes:
        process.stdin.close()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def flops_per_token(shape: Shape) -> float:
    """Count a training step's products: 6 N + 12 L T D (Chowdhery et al. 2022, appendix B).

    N counts the matrices; the embedding counts once, as the head. Attention counts in
    full, though half of it is masked.
    """
    matrices = 12 * shape.num_layers * shape.width**2 + shape.vocab_size * shape.width
    return 6 * matrices + 12 * shape.num_layers * shape.seq_len * shape.width


def main(argv: list[str]) -> None:
    shape = SHAPES[SHAPE.value]
    chosen = sides(shape)
    if ONLY.value:
        unknown = set(ONLY.value) - set(chosen)
        if unknown:
            raise app.UsageError(f"--only={unknown}: choose from {', '.join(chosen)}")
        chosen = {name: chosen[name] for name in chosen if name in ONLY.value}
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


def report(shape: Shape, seconds: dict, peak: dict, first_step: dict, loss: dict) -> None:
    limit = None
    if "products" in seconds:
        limit = 2 * PRODUCT**3 / statistics.median(seconds.pop("products"))
        print(f"products of {PRODUCT} x {PRODUCT}: {limit / 1e9:.0f} GFLOP/s\n")
    tokens = shape.batch_size * shape.seq_len
    for name in [name for name in seconds if name.startswith("loader")]:
        rate = LOADER_BATCHES * tokens / statistics.median(seconds.pop(name))
        print(f"{name} alone: {rate / 1e6:.1f} M tokens/s\n")
    if not seconds:
        return
    references = [name for name in REFERENCES if name in seconds]
    print(
        "| | tokens/s | "
        + " | ".join(f"times {name}" for name in references)
        + " | of the limit | peak memory | first step | first loss |"
    )
    print("|---|---|" + "---|" * len(references) + "---|---|---|---|")
    for name, times in seconds.items():
        rate = tokens / statistics.median(times)
        ratios = [
            statistics.median(b / a for a, b in zip(times, seconds[r], strict=True))
            for r in references
        ]
        share = f"{rate * flops_per_token(shape) / limit:.0%}" if limit else ""
        cells = [f"{rate:.0f}", *(f"{ratio:.2f}" for ratio in ratios), share]
        cells += [f"{peak[name] / 1e9:.2f} GB", f"{first_step[name]:.1f} s"]
        print(f"| {name} | " + " | ".join(cells) + f" | {loss[name]:.4f} |")


if __name__ == "__main__":
    app.run(main)
