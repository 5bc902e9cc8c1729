"""Logs of a run: metrics.jsonl, TensorBoard and the progress bar.

The loop hands over each step's metrics as device arrays. The log reads them one step later,
so that the host never waits for the step that it has just launched.
"""

import collections
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from experiments.processes.files import json_line, without_nonfinite, write_whole
from experiments.processes.messages import human, say
from experiments.run.noise_scale import NoiseScale
from lm.metrics import perplexity
from lm.norms import ACTIVATION_RMS, ACTIVATION_SQUARE, GRADIENT_NORM
from parallel.balance.stragglers import FACTOR, STEPS, Watch, watched
from parallel.readings import APPLIED, Reading, read
from parallel.server.session import Line

SPIKE_WINDOW = 100  # steps whose losses a spike is compared with
MIN_SPIKE_HISTORY = 20

OF_STEPS = (
    "grad_norm",
    "learning_rate",
    "loss_scale",
    "row_loss_median",
    "row_loss_distance",
    "moved_microbatches",
)
OF_PUSHES = ("number", "worker", "staleness")  # under a parameter server
SCHEDULE = "schedule.jsonl"


class Spikes:
    """Count losses far above the mean of those before them."""

    def __init__(self, sigmas: float, losses: list[float]):
        self.sigmas = sigmas
        self.count = 0
        self.recent: collections.deque[float] = collections.deque(maxlen=SPIKE_WINDOW)
        for loss in losses:
            self.add(loss)

    def add(self, loss: float) -> bool:
        """Return whether this loss is a spike; one that is not finite counts as skipped."""
        if not math.isfinite(loss):
            return False
        spike = False
        if self.sigmas and len(self.recent) >= MIN_SPIKE_HISTORY:
            mean, deviation = (
                statistics.fmean(self.recent),
                statistics.pstdev(self.recent),
            )
            spike = loss > mean + self.sigmas * deviation
        self.count += spike
        self.recent.append(loss)
        return spike


class Skipped(NamedTuple):
    """A step whose update was skipped, and why."""

    step: int
    reason: str
    in_a_row: int  # skipped steps up to and including this one
    where: str = "on every device"
    known_to_all: bool = True  # all processes learn of it at this step
    number: int | None = None  # of the rows; None: that of the step


def reason(loss: float, grad_norm: float) -> str:
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    return f"the loss is {loss:.4g}, but the gradient's norm is {grad_norm}"


def skipped_apart(step: int, reading: Reading) -> Skipped | None:
    """Return what was skipped by replicas that train apart (parallel/local.py)."""
    if reading.told:
        told = ", ".join(
            f"replica {replica} skipped {steps}, {in_a_row} of them in a row"
            for replica, (steps, in_a_row) in reading.told.items()
        )
        longest = max(in_a_row for _, in_a_row in reading.told.values())
        return Skipped(step, f"since they last met, in steps: {told}", longest, "there")
    if reading.skipping:
        replicas = ", ".join(map(str, reading.skipping))
        return Skipped(step, f"on replica {replicas}", 0, "there", known_to_all=False)
    return None


class Log:
    """Writes the records of one run, after those of an interrupted run.

    Only the process with `write` set writes. Every process reads the metrics, so that all
    make the same decisions. Where replicas train apart, a process sees the metrics of its
    own replicas, and the records are of those of the process that writes.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        start: int,
        steps: int,
        spike_sigmas: float,
        epochs: Callable[[int], float],  # up to a step
        write: bool,
    ):
        self.file = workdir / "metrics.jsonl"
        records = keep_until(self.file, start) if write else []
        trained = [r for r in records if r["split"] == "train"]
        known = trained[-1]["step"] if trained else 0
        if write and known < start:
            say(
                f"warning: {self.file} has no records of the steps after {known} up to "
                f"{start}; tokens, skipped steps and spikes are counted without them"
            )
        self.schedule = workdir / SCHEDULE if write else None
        if write:
            keep_until(self.schedule, start, OF_SCHEDULE)
        self.epochs = epochs
        self.skipped_in_a_row = 0  # in this process, so that all processes agree
        self.tokens = trained[-1]["tokens"] if trained else 0
        self.skipped = sum(r["skipped"] for r in trained)
        self.rates = [r["tokens_per_second"] for r in trained]
        self.spikes = Spikes(
            spike_sigmas, [r["loss"] for r in trained if r["loss"] is not None]
        )
        self.noise = NoiseScale(trained)
        self.watch: Watch | None = None
        for record in trained:
            self.watched(record.get("compute_seconds", ()))
        self.pending: tuple[int, dict[str, jax.Array], float, float] | None = None
        self.norms: tuple[int, Sequence[float]] = 0, ()  # of the last finished step
        self.last_done = 0.0
        self.stream = None  # opened by the first record: an empty file would be damage
        self.board = Board(workdir / "tensorboard", start + 1) if write else None
        self.bar = tqdm(
            total=steps, initial=start, desc="train", unit="step", disable=not write,
            mininterval=0.5, dynamic_ncols=True,
        )  # fmt: skip

    def train(
        self, step: int, metrics: dict[str, jax.Array], began: float, waited: float
    ) -> Skipped | None:
        """Take a launched step's metrics; finish the step before it.

        `began` is the time at which the host began this step, `waited` the seconds for
        which it waited for the batch. Returns the finished step if its update was
        skipped.
        """
        self.write_schedule(metrics.get(APPLIED, ()))
        skipped = self.flush()
        self.pending = (step, metrics, began, waited)
        return skipped

    def write_schedule(self, lines: Sequence[Line]) -> None:
        """Write the pushes of an update; synchronous programs have none."""
        if lines and self.schedule:
            with self.schedule.open("a", encoding="utf-8") as stream:
                stream.writelines(json_line(line._asdict()) for line in lines)

    def flush(self) -> Skipped | None:
        """Wait for the pending step and write its record."""
        if self.pending is None:
            return None
        step, arrays, began, waited = self.pending
        self.pending = None
        reading = read(arrays)
        m = reading.values
        self.norms = step, reading.norms
        now = time.perf_counter()
        seconds = now - max(self.last_done, began)
        self.last_done = now
        finite = m.get("finite", True)  # what only counts has no loss, and is always fine
        # What the loss is divided by. If no row has a weight, there is no loss.
        weight = m.get("weight", max(m["tokens"], 1))
        loss = m.get("loss", math.nan) / (weight or math.nan)
        self.tokens += int(m["tokens"])
        self.skipped += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        self.rates.append(m["tokens"] / seconds)
        estimates = {n: m[n] for n in ("grad_variance", "grad_square") if n in m}
        if estimates:
            estimates["noise_scale"] = self.noise.add(**estimates)
        for replica, ratio in self.watched(reading.seconds).items():
            who = "worker" if "number" in m else "replica"
            self.say(straggler_told(step, who, replica, ratio))
        self.write(
            {
                "split": "train",
                "step": step,
                "loss": loss,
                "perplexity": perplexity(loss),
                "tokens": self.tokens,
                "epochs": self.epochs(step),
                "tokens_per_second": m["tokens"] / seconds,
                "step_seconds": seconds,
                "data_wait_seconds": waited,
                **estimates,
                **traced_norms(m),
                **{name: m[name] for name in OF_STEPS + OF_PUSHES if name in m},
                **({"compute_seconds": reading.seconds} if reading.seconds else {}),
                **({"mean_weight": weight / (m["tokens"] or 1)} if "weight" in m else {}),
                "skipped": int(not finite),
                "spike": int(self.spikes.add(loss)),
            }
        )
        self.bar.update(1)
        # A model of counts has no loss.
        told = f"loss {loss:.3f}, " if math.isfinite(loss) else ""
        self.bar.set_postfix_str(
            f"{told}{human(m['tokens'] / seconds)} tokens/s", refresh=False
        )
        if reading.told or reading.skipping:
            return skipped_apart(step, reading)
        if finite:
            return None
        why = reason(loss, m["grad_norm"])
        return Skipped(step, why, self.skipped_in_a_row, number=m.get("number"))

    def watched(self, seconds: Sequence[float]) -> dict[int, float]:
        """Take in the seconds of each replica or worker; return who begins to straggle."""
        if not seconds:
            return {}
        if self.watch and len(self.watch.means_W) != len(seconds):
            self.watch = None  # the run goes on with another number of replicas
        before = self.watch.stragglers if self.watch else {}
        self.watch = watched(self.watch, seconds)
        now = self.watch.stragglers
        return {replica: now[replica] for replica in now.keys() - before.keys()}

    def write(self, record: dict[str, Any]) -> None:
        if self.board is None:
            return
        if self.stream is None:
            self.stream = self.file.open("a", encoding="utf-8")
        self.stream.write(json_line(record))
        self.stream.flush()
        self.board.write(without_nonfinite(record))

    def say(self, line: str) -> None:
        self.bar.clear()
        say(line)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.bar.close()
        if self.stream is not None:
            self.stream.close()
        if self.board is not None:
            self.board.close()


def straggler_told(step: int, who: str, index: int, ratio: float) -> str:
    return (
        f"step {step}: {who} {index} straggles: for {STEPS} steps its running mean of "
        f"seconds of computing has been above {FACTOR} x the median, now {ratio:.2f} x"
    )


class Board:
    """TensorBoard event files, without TensorFlow.

    Records are written at once, because tensorboardX's own thread hangs on a full disk.
    """

    def __init__(self, folder: pathlib.Path, first_step: int):
        folder.mkdir(exist_ok=True)
        self.events = EventsWriter(str(folder / "events"))
        # Tells TensorBoard to forget what a killed run wrote after its checkpoint.
        start = SessionLog(status=SessionLog.START)
        self.events.write_event(
            Event(wall_time=time.time(), step=first_step, session_log=start)
        )

    def write(self, record: dict[str, Any]) -> None:
        values = [
            Summary.Value(tag=f"{record['split']}/{name}", simple_value=value)
            for name, value in record.items()
            if isinstance(value, int | float) and name != "step"
        ]
        self.events.write_event(
            Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values))
        )
        self.events.flush()

    def close(self) -> None:
        self.events.close()


def traced_norms(metrics: dict[str, float]) -> dict[str, float]:
    """Return the values by layer that a step traced: gradient norms, RMS of outputs."""
    found = {n: x for n, x in metrics.items() if n.startswith(GRADIENT_NORM)}
    for name, total in metrics.items():
        if name.startswith(ACTIVATION_SQUARE):
            layer = name.removeprefix(ACTIVATION_SQUARE)
            mean = total / max(metrics["tokens"], 1)
            found[ACTIVATION_RMS + layer] = math.sqrt(mean)
    return found


OF_METRICS, OF_SCHEDULE = ("step", "split"), ("step", "worker")


def keep_until(
    file: pathlib.Path, step: int, names: tuple[str, str] = OF_METRICS
) -> list[dict[str, Any]]:
    """Drop the records after `step` (steps that will be taken again); return the rest."""
    kept = read_metrics(file, step, names)
    if file.exists():
        write_whole(file, "".join(map(json_line, kept)))
    return kept


def read_metrics(
    file: pathlib.Path,
    last_step: int | None = None,
    names: tuple[str, str] = OF_METRICS,
) -> list[dict[str, Any]]:
    """Read the records of a metrics.jsonl up to a step; none if there is no file.

    `names` are what each record has, first its step. A last line that a kill has cut is
    left out. ValueError for any other damage.
    """
    lines = file.read_bytes().split(b"\n") if file.exists() else [b""]
    records = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
            step, _ = int(record[names[0]]), record[names[1]]
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{file} is damaged: line {number} is no record; {REMOVE_METRICS}"
            ) from None
        if last_step is None or step <= last_step:
            records.append(record)
    return records


REMOVE_METRICS = "put back a copy of it, or remove it to go on without earlier records"
