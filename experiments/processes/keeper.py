"""Start a command again and again, and import what it needs once. Linux only.

python -m experiments.processes.keeper experiments.train    (children.Keeper does it)

Most of the seconds of a short start are imports. Standard input is a socket. For each line
that comes, a JSON list of arguments and of cores, this process forks, and the child becomes
the command. The answers are two lines: the child's process id, and at its end its code.
"""

import ast
import contextlib
import gc
import importlib
import importlib.util
import json
import os
import pathlib
import runpy
import signal
import socket
import sys
import warnings

from experiments.processes.children import die_with_parent


def import_all(module: str) -> None:
    """Import what a command's file imports. It is not imported itself: it defines flags."""
    file = pathlib.Path(importlib.util.find_spec(module).origin)
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        else:
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            with contextlib.suppress(ImportError):  # the command itself will report it
                importlib.import_module(name)


def keep() -> list[str] | None:
    """Fork for each line; return the arguments in a child, and None in the end."""
    me = os.getpid()
    with (
        socket.socket(fileno=os.dup(0)) as line,
        line.makefile("rw", encoding="utf-8") as orders,
    ):
        for order in orders:
            arguments, cores = json.loads(order)
            with warnings.catch_warnings():  # JAX has no threads before it has devices
                warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
                child = os.fork()
            if not child:
                os.sched_setaffinity(0, cores)
                die_with_parent(signal.SIGKILL)
                if os.getppid() != me:  # it died before that
                    os._exit(1)
                return arguments
            print(child, file=orders, flush=True)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(code, file=orders, flush=True)
    return None


def main() -> None:
    module = sys.argv[1]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a Ctrl-C, the children end
    import_all(module)
    gc.collect()
    gc.freeze()  # else a child would copy all of this when it collects it
    arguments = keep()
    if arguments is None:
        return
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["", *arguments]
    sys.orig_argv = [sys.executable, "-m", module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
