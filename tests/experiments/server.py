"""Runs commands in processes that are forked from one which has imported JAX already.

Importing is most of what a short command does. Everything else is as if the command had
been started anew: a process of its own, its exit code, its output, its end by `sys.exit`.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import sys

from experiments.processes.allocator import preload

# What the commands import; none of them is a command, for those define flags when run.
LIBRARIES = [
    "experiments.run.startup", "experiments.run.loop", "experiments.run.summary",
    "experiments.run.restore", "experiments.planning.dry_run", "lm.decoding",
    "experiments.planning.out_of_memory", "experiments.asynchronous.pool",
]  # fmt: skip


def serve() -> dict | None:
    """Fork for each request of a line; return the request in the child, else None.

    The children of a line run together. Prints the list of their exit codes, negative for
    the signal that ended one.
    """
    for line in sys.stdin:
        children = []
        for request in json.loads(line):
            child = os.fork()
            if not child:
                return request
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(x, 0)[1]) for x in children]
        print(json.dumps(codes), flush=True)
    return None


def run(request: dict) -> None:
    signal.alarm(request["seconds"])  # ends it, should it hang
    files = (
        (os.devnull, os.O_RDONLY),
        *((request[name], os.O_WRONLY | os.O_CREAT) for name in ("stdout", "stderr")),
    )
    for number, (file, mode) in enumerate(files):
        os.dup2(os.open(file, mode), number)
    os.environ.update(request["environ"])
    if platforms := request["environ"].get("JAX_PLATFORMS"):
        # JAX read it when it was imported.
        sys.modules["jax"].config.update("jax_platforms", platforms)
    sys.argv = ["", *request["flags"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    preload()  # as each command would; what they start chooses anew
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # else each child would copy all of this when it ends and collects it
    if request := serve():
        run(request)
