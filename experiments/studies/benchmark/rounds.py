"""Processes that take a few steps in turns."""

import json
import os
import subprocess

from experiments.processes.children import own_cores


def start(commands: list[list[str]]) -> list[subprocess.Popen]:
    """Start the processes of one side, each on its share of the cores."""
    pipe = subprocess.PIPE
    processes = []
    for index, command in enumerate(commands):
        processes.append(
            subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8"
            )
        )
        os.sched_setaffinity(processes[-1].pid, own_cores(index, len(commands)))
    return processes


def answer(processes: list[subprocess.Popen]) -> dict:
    """Wait for a JSON line from every process; return that of the first."""
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
    """Close the input of each process, so that it ends its children and itself."""
    for process in processes:
        process.stdin.close()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
