"""Logs of a run: metrics.jsonl, TensorBoard, the progress bar, and where time went.

The loop hands over each step's metrics as device arrays; they are read one step later, so
that the host never waits for the step that it has just launched.
"""

import collections
import contextlib
import json
import math
import pathlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from experiments.processes.files import write_whole
from experiments.processes.messages import human, say
from experiments.run.noise_scale import NoiseScale
from lm.metrics import perplexity
from lm.norms import ACTIVATION_RMS, ACTIVATION_SQUARE, GRADIENT_NORM

SPIKE_WINDOW = 100  # steps whose losses tell what is usual
MIN_SPIKE_HISTORY = 20


class Clock:
    """Seconds by part of the run, and those that this process's cores worked in it."""

    def __init__(self):
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.core_seconds: dict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start, core_start = time.perf_counter(), time.process_time()
        yield
        self.seconds[part] += time.perf_counter() - start
        self.core_seconds[part] += time.process_time() - core_start


class Spikes:
    """Count losses far above the mean of those before them."""

    def __init__(self, sigmas: float, losses: list[float]):
        self.sigmas = sigmas
        self.count = 0
        self.recent: collections.deque[float] = collections.deque(maxlen=SPIKE_WINDOW)
        for loss in losses:
            self.add(loss)

    def add(self, loss: float) -> bool:
        """Return whether this loss is a spike (a non-finite one is not: it is worse)."""
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


class Log:
    """Writes the records of one run; goes on where a killed run's records end.

    Only the process with `write` set writes; every process reads the metrics, so that all
    take the same decisions.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        start: int,
        steps: int,
        spike_sigmas: float,
        write: bool,
    ):
        self.file = workdir / "metrics.jsonl"
        records = keep_until(self.file, start) if write else []
        trained = [r for r in records if r["split"] == "train"]
        self.tokens = trained[-1]["tokens"] if trained else 0
        self.skipped = sum(r["skipped"] for r in trained)
        self.rates = [r["tokens_per_second"] for r in trained]
        self.spikes = Spikes(
            spike_sigmas, [r["loss"] for r in trained if r["loss"] is not None]
        )
        self.noise = NoiseScale(trained)
        self.pending: tuple[int, dict[str, jax.Array], float, float] | None = None
        self.last_done = 0.0
        self.stream = self.file.open("a", encoding="utf-8") if write else None
        self.board = Board(workdir / "tensorboard", start + 1) if write else None
        self.bar = tqdm(
            total=steps, initial=start, desc="train", unit="step", disable=not write,
            mininterval=0.5, dynamic_ncols=True,
        )  # fmt: skip

    def train(
        self, step: int, metrics: dict[str, jax.Array], began: float, waited: float
    ) -> list[int]:
        """Take a launched step's metrics; finish the step before it.

        `began` is when the host turned to this step, `waited` the seconds it waited for
        its batch. Returns the steps (none or one) found to be non-finite.
        """
        nonfinite = self.flush()
        self.pending = (step, metrics, began, waited)
        return nonfinite

    def flush(self) -> list[int]:
        """Wait for the pending step and write its record."""
        if self.pending is None:
            return []
        step, arrays, began, waited = self.pending
        self.pending = None
        m = {name: x.item() for name, x in jax.device_get(arrays).items()}
        now = time.perf_counter()
        seconds = now - max(self.last_done, began)
        self.last_done = now
        loss = m["loss"] / max(m["tokens"], 1)
        self.tokens += int(m["tokens"])
        self.skipped += not m["finite"]
        self.rates.append(m["tokens"] / seconds)
        estimates = {n: m[n] for n in ("grad_variance", "grad_square") if n in m}
        if estimates:
            estimates["noise_scale"] = self.noise.add(**estimates)
        self.write(
            {
                "split": "train",
                "step": step,
                "loss": loss,
                "perplexity": perplexity(loss),
                "tokens": self.tokens,
                "tokens_per_second": m["tokens"] / seconds,
                "step_seconds": seconds,
                "data_wait_seconds": waited,
                "grad_norm": m["grad_norm"],
                **estimates,
                **traced_norms(m),
                "learning_rate": m["learning_rate"],
                "loss_scale": m["loss_scale"],
                "skipped": int(not m["finite"]),
                "spike": int(self.spikes.add(loss)),
            }
        )
        self.bar.update(1)
        # Counting has none.
        told = f"loss {loss:.3f}, " if math.isfinite(loss) else ""
        self.bar.set_postfix_str(
            f"{told}{human(m['tokens'] / seconds)} tokens/s", refresh=False
        )
        return [] if m["finite"] else [step]

    def write(self, record: dict[str, Any]) -> None:
        if self.stream is None:
            return
        for name, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                record[name] = None  # JSON has no word for it
        self.stream.write(json.dumps(record) + "\n")
        self.stream.flush()
        self.board.write(record)

    def say(self, line: str) -> None:
        self.bar.clear()
        say(line)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.bar.close()
        if self.stream is not None:
            self.stream.close()
            self.board.close()


class Board:
    """TensorBoard event files, without TensorFlow.

    Written at once, not by a thread of tensorboardX's: that one hangs on a full disk.
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
    """Return what a step traced by layer: gradient norms, RMS of outputs over tokens."""
    found = {n: x for n, x in metrics.items() if n.startswith(GRADIENT_NORM)}
    for name, total in metrics.items():
        if name.startswith(ACTIVATION_SQUARE):
            layer = name.removeprefix(ACTIVATION_SQUARE)
            mean = total / max(metrics["tokens"], 1)
            found[ACTIVATION_RMS + layer] = math.sqrt(mean)
    return found


def keep_until(file: pathlib.Path, step: int) -> list[dict[str, Any]]:
    """Drop the records after `step` (steps that will be taken again); return the rest."""
    kept = read_metrics(file, step)
    lines = "".join(json.dumps(record) + "\n" for record in kept)
    write_whole(file, lines)
    return kept


def read_metrics(file: pathlib.Path, last_step: int | None = None) -> list[dict]:
    """Read the records of a metrics.jsonl up to a step; none if there is no file."""
    records = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break  # the line that a kill cut off
        if last_step is None or record["step"] <= last_step:
            records.append(record)
    return records


PARTS = ("prepare", "compile", "data", "step", "eval", "checkpoint")  # of a run's seconds
