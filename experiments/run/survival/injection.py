"""Make faults happen in this process, and log them in faults.jsonl before they act."""

import contextlib
import errno
import json
import os
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from absl import flags
from jax.sharding import Mesh

from configs.base import Experiment
from experiments.processes.descendants import SERVER, descendants
from experiments.processes.fault_plans import as_dict, check_kinds, planned, ways
from experiments.processes.faults import (
    IN_STEP,
    KINDS,
    OF_LINKS,
    OF_SERVER,
    AtSeconds,
    AtStep,
    BadLink,
    CorruptRecord,
    DeadLink,
    Drawn,
    Fault,
    FlippedCheckpoint,
    FlippedFrame,
    FlippedGradient,
    FlippedParameter,
    FullDisk,
    Kill,
    KillShard,
    KillWorker,
    Partition,
    ReadOnlyDisk,
    Setting,
    Slow,
    Stop,
    TornCheckpoint,
)
from experiments.processes.files import json_line, whole_records, write_whole
from experiments.processes.network import orders
from experiments.run.python_file import call_function
from experiments.run.survival.copies import settings
from experiments.run.survival.damage import (
    checkpoints,
    flip_in_file,
    flip_in_tree,
    largest_file,
)
from experiments.run.survival.flips import Flip
from experiments.run.survival.goodput import FILE
from lm.data.prepare import Data
from parallel.config import where
from parallel.program import TrainState

flags.disclaim_key_flags()  # --help then lists it as the command's own flag

LOG = "faults.jsonl"
SETTING = "faults.json"  # what there was to go wrong when the run began
GONE = -1
TIMED = (Kill, Stop, *OF_LINKS)  # may act in the middle of a step


def define_faults() -> flags.FlagHolder:
    return flags.DEFINE_string(
        "faults",
        None,
        "Faults that happen to the run: a Python file with get_faults(), or one kind "
        f"({', '.join(KINDS)}).",
    )


def read_faults(
    flag: str | None, config: Experiment, mesh: Mesh, data: Data, workdir: pathlib.Path
) -> list[Fault]:
    """Return the faults of --faults: a file with get_faults(), or the name of a kind.

    A kind is one fault, at a step that the seed chooses. Raises ValueError if it is
    neither.
    """
    setting = first_setting(workdir) or setting_of(config, mesh, data)
    seed, steps = config.seed, config.steps
    if not flag:
        return []
    if flag.endswith(".py"):
        faults = call_function(flag, "get_faults")
        if not isinstance(faults, list | tuple):
            raise ValueError(f"{flag}: get_faults() returns {faults!r}; expected a list")
    else:
        check_kinds([flag])
        faults = [Drawn((flag,), 1, AtStep(max(steps // 2, 2)), seed)]
    plan = planned(faults, setting)
    for fault in plan:
        if problem := unfit(fault, config):
            raise ValueError(f"--faults={flag}: {fault}: {problem}")
    return plan


def unfit(fault: Fault, config: Experiment) -> str:
    """Say why a fault cannot happen to this run, and what to change; "" if it can."""
    strategy, server = config.parallel.strategy, config.parallel.server
    able = where(exchanges=True, exact=True)["parallel.strategy"]
    if isinstance(fault, FlippedGradient) and strategy not in able:
        return (
            "it flips the gradient of one replica, and under strategy "
            f"{strategy!r} replicas exchange none; choose one of {', '.join(able)}"
        )
    if isinstance(fault, OF_LINKS) and not orders.taken():
        return (
            "the processes are joined by no links that could be changed; start them with "
            "experiments.launch --links=FILE.py"
        )
    is_served = not config.parallel.row.synchronous
    if isinstance(fault, OF_SERVER) and not (is_served and server.pool == "ray"):
        return (
            f"strategy {strategy!r} with parallel.server.pool={server.pool} has no workers "
            "and shards in processes of their own; give parameter_server and ray"
        )
    if isinstance(fault, FlippedFrame) and not settings()[0]:
        return "no copies are sent; start the run with experiments.launch --copies=STEPS"
    if isinstance(fault, FlippedParameter) and is_served:
        return (
            f"under strategy {strategy!r} this process holds no parameters; choose "
            "another strategy"
        )
    return ""


def first_setting(workdir: pathlib.Path) -> Setting | None:
    """Return what there was when the run began; it may go on with fewer processes."""
    file = workdir / SETTING
    if not file.exists():
        return None
    return Setting(**json.loads(file.read_text(encoding="utf-8")))


def setting_of(config: Experiment, mesh: Mesh, data: Data) -> Setting:
    """Return what there is to go wrong."""
    num_records, batch_size = len(data.train.tokens), config.data.batch_size
    return Setting(jax.process_count(), mesh.size, num_records, batch_size)


def keep_setting(workdir: pathlib.Path, setting: Setting) -> None:
    """Write down what there was to go wrong when the run began."""
    if not (workdir / SETTING).exists():
        write_whole(workdir / SETTING, json_line(setting._asdict()))


def gradient_flips(plan: Sequence[Fault], workdir: pathlib.Path, seed: int) -> list[Flip]:
    """Return the flips that the steps are to be compiled with."""
    done = {line["number"] for line in logged(workdir)}
    key = jax.random.key(seed)
    return [
        Flip(jax.random.fold_in(key, f.at.step - 1), f.row, f.leaf, f.element, f.bit)
        for number, f in enumerate(plan)
        if isinstance(f, FlippedGradient) and number not in done
    ]


class Targets(NamedTuple):
    """What faults damage besides processes and checkpoints."""

    mesh: Mesh
    rows: pathlib.Path  # the file of the tokens of training rows
    row_bytes: int


class Injector:
    """The faults of a run whose target is this process; the loop asks it in each step."""

    def __init__(
        self,
        plan: Sequence[Fault],
        workdir: pathlib.Path,
        index: int,
        targets: Targets,
    ):
        self.workdir, self.index = workdir, index
        self.mesh, self.rows, self.row_bytes = targets
        done = {line["number"] for line in logged(workdir)}
        self.waiting = {n: f for n, f in enumerate(plan) if n not in done}
        self.slow: list[tuple[range, float]] = []
        self.broken: OSError | None = None  # what the next save meets
        self.timers: list[threading.Timer] = []
        self.frame_bit: int | None = None  # that is flipped in the next frame

    def begin(self) -> None:
        """Set timers for the faults of this process that come at an instant."""
        events = whole_records(self.workdir / FILE)
        first = events[0]["wall"] + events[0]["elapsed"] if events else time.time()
        for number, fault in list(self.waiting.items()):
            if isinstance(fault, TIMED) and isinstance(fault.at, AtSeconds):
                del self.waiting[number]
                if self.target(fault) == self.index:
                    delay = max(first + fault.at.seconds - time.time(), 0)
                    timer = threading.Timer(delay, self.act, (number, fault, None))
                    timer.daemon = True
                    timer.start()
                self.timers.append(timer)
        self.first = first

    def end(self) -> None:
        """Give up the timers; the next phase of the run sets its own."""
        for timer in self.timers:
            timer.cancel()

    def before(self, step: int, state: TrainState) -> TrainState:
        """Let the faults that are due happen; return the state, perhaps damaged."""
        for number, fault in list(self.waiting.items()):
            if self.is_due(fault, step):
                del self.waiting[number]
                if self.target(fault) in (self.index, None):
                    state = self.act(number, fault, state)
        for steps, seconds in self.slow:
            if step in steps:
                time.sleep(seconds)
        return state

    def before_save(self, step: int) -> None:
        """Raise the OSError that this save is to meet."""
        broken, self.broken = self.broken, None
        if broken:
            raise broken

    def before_frame(self, payload: bytes) -> bytes:
        """Return a frame's payload as it leaves."""
        bit, self.frame_bit = self.frame_bit, None
        if bit is None:
            return payload
        changed = bytearray(payload)
        changed[len(payload) // 2] ^= 1 << bit % 8
        return bytes(changed)

    def is_due(self, fault: Fault, step: int) -> bool:
        if isinstance(fault, TornCheckpoint | FlippedCheckpoint):
            # With a single checkpoint, there would be none to go back to.
            if len(checkpoints(self.workdir)) < 2:
                return False
        if isinstance(fault.at, AtStep):
            return step >= fault.at.step
        return time.time() - self.first >= fault.at.seconds

    def target(self, fault: Fault) -> int | None:
        """Return the process in which the fault acts; None: in all of them."""
        if isinstance(fault, FlippedParameter):
            if fault.device >= self.mesh.size:  # it was lost with its process
                return GONE
            return self.mesh.devices.flat[fault.device].process_index
        if isinstance(fault, IN_STEP):
            return None
        return getattr(fault, "process", 0)

    def act(self, number: int, fault: Fault, state: TrainState) -> TrainState:
        if self.target(fault) is not None or self.index == 0:
            self.write(number, fault)
        match fault:
            case Kill():
                kill()
            case Stop(seconds=seconds):
                stop(seconds)
            case Slow(at=at, seconds=seconds, steps=steps):
                first = at.step if isinstance(at, AtStep) else int(state.step) + 1
                self.slow.append((range(first, first + steps), seconds))
            case FullDisk():
                self.broken = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            case ReadOnlyDisk():
                self.broken = OSError(errno.EROFS, os.strerror(errno.EROFS))
            case TornCheckpoint():
                file = largest_file(self.workdir)
                os.truncate(file, file.stat().st_size // 2)
                kill()
            case FlippedCheckpoint(bit=bit):
                file = largest_file(self.workdir)
                flip_in_file(file, file.stat().st_size // 2, bit)
                kill()
            case CorruptRecord(record=record, bit=bit):
                flip_in_file(self.rows, record * self.row_bytes + self.row_bytes // 2, bit)
            case BadLink(seconds=seconds, link=link):
                orders.worsen(ways(fault, jax.process_count()), link, seconds)
            case DeadLink(seconds=seconds) | Partition(seconds=seconds):
                orders.worsen(ways(fault, jax.process_count()), None, seconds)
            case KillWorker(victim=victim):
                kill_descendant("worker", victim)
            case KillShard(victim=victim):
                kill_descendant("shard", victim)
            case FlippedFrame(bit=bit):
                self.frame_bit = bit
            case FlippedGradient():
                pass  # the compiled step does it
            case FlippedParameter():
                device = self.mesh.devices.flat[fault.device]
                return state._replace(params=flip_in_tree(state.params, device, fault))
        return state

    def write(self, number: int, fault: Fault) -> None:
        with (self.workdir / LOG).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(as_dict(number, fault)) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def logged(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Return the faults that have been injected into a run."""
    return whole_records(workdir / LOG)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_descendant(kind: str, victim: int) -> None:
    """Kill a worker or a shard that this process has started; none, if all are dead."""
    found = descendants(os.getpid(), SERVER[kind])
    if found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(found[victim % len(found)], signal.SIGKILL)


def stop(seconds: float) -> None:
    """Stop this process; another one wakes it after some seconds, or nobody does."""
    if seconds:
        wake = f"sleep {seconds}; kill -CONT {os.getpid()}"
        subprocess.Popen(["sh", "-c", wake], start_new_session=True)
    os.kill(os.getpid(), signal.SIGSTOP)
