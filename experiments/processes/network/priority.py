"""Before all other work of the machine: for what is a wire, or measures one."""

import contextlib
import os
from collections.abc import Iterator

from experiments.processes.namespaces import libc

PR_SET_TIMERSLACK = 29


@contextlib.contextmanager
def first_of_all() -> Iterator[None]:
    """Let this thread and those that it starts run as soon as they can.

    For little work only: nobody else has the core meanwhile. A container may not allow it;
    then a busy machine makes packets late, by what Network.lateness tells.
    """
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    libc().prctl(PR_SET_TIMERSLACK, 1)  # nanoseconds; 0 gives the usual 50,000 back
    try:
        yield
    finally:
        libc().prctl(PR_SET_TIMERSLACK, 0)
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
