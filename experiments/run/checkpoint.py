"""Checkpoints by Orbax: saved asynchronously; the last few and the best are kept.

The best checkpoint has the lowest validation loss. Only losses over the same number of rows
are compared, so the last evaluation, which has all rows, is scored by its first
`eval_batches` batches. A loss that is not finite never counts.

A state is restored with the *target* program's shardings, so a run can continue under
another strategy or number of devices. Each checkpoint carries a digest of the state's bits,
an integer sum that no sharding changes. A checkpoint that does not load, or loads other
bits, is damaged, and the newest whole one is used.
"""

import contextlib
import math
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from experiments.processes.messages import is_main_process, say
from parallel.agreement import bit_sum
from parallel.program import Program, TrainState
from parallel.regroup import at_degree_of

# Each replica writes a part of an array. To cut a smaller part takes longer than to write
# the array: a save of 45 small arrays from 8 devices takes half as long uncut.
LEAST_SLICE_BYTES = 1 << 16


class Score(NamedTuple):
    """A validation loss by which checkpoints are compared."""

    val_loss: float
    rows: int  # over which the loss was taken


def best_step(checkpoints: Sequence[Any]) -> int | None:
    """Return the step of the best checkpoint; each has a `step` and `metrics` or None."""
    scores = {
        checkpoint.step: Score(**checkpoint.metrics)
        for checkpoint in checkpoints
        if checkpoint.metrics
    }
    scores = {step: s for step, s in scores.items() if math.isfinite(s.val_loss)}
    if not scores:
        return None
    rows = scores[max(scores)].rows
    return min((s.val_loss, step) for step, s in scores.items() if s.rows == rows)[1]


class KeepBest:
    """Orbax asks it which checkpoints to keep."""

    def should_preserve(self, checkpoints: Sequence[Any], *, context) -> list[bool]:
        best = best_step(checkpoints)
        return [checkpoint.step == best for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one workdir. Use as a context manager.

    With `write`, files that a killed run left half-written are removed first. A reader must
    not remove them, because another process may be saving.
    """

    def __init__(self, folder: pathlib.Path, keep: int, write: bool):
        policies = ocp.training.preservation_policies
        context = ocp.Context()
        context.array.saving.min_slice_bytes_for_replica_parallel = LEAST_SLICE_BYTES
        self.folder = folder.absolute()
        self.checkpointer = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(keep), KeepBest()]
            ),
            cleanup_tmp_directories=write,
            context=context,
        )
        self.pending: tuple[int, Any] | None = None
        self.before_save: Callable[[int], None] = lambda step: None  # may raise OSError

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.wait()
            self.checkpointer.close()
        except OSError:
            # Orbax may report a failed save once more, here: a full disk would then hide
            # the error that ends the run, which says what to do.
            if error is None:
                raise

    @property
    def steps(self) -> list[int]:
        return [checkpoint.step for checkpoint in self.checkpointer.checkpoints]

    def best_step(self) -> int | None:
        return best_step(self.checkpointer.checkpoints)

    def save(
        self, step: int, program: Program, state: TrainState, score: Score | None
    ) -> None:
        """Start to save. The arrays are copied to the host before this returns."""
        self.save_parts(step, split_state(program.portable(state)), score)

    def save_parts(self, step: int, parts: dict[str, Any], score: Score | None) -> None:
        """Start to save parts of a state; a run can begin with `params` alone."""
        self.wait()
        metrics = score and score._asdict()
        try:
            self.before_save(step)
            response = self.checkpointer.save_checkpointables_async(
                step,
                parts,
                force=True,
                metrics=metrics,
                custom_metadata=digests(parts),
            )
        except Exception as error:  # Orbax raises many kinds for a full disk
            self.say_failed(step, error)
        else:
            self.pending = (step, response)

    def wait(self) -> None:
        """Wait for the save in progress; warn if it failed, and let the run go on."""
        if self.pending is None:
            return
        step, response = self.pending
        self.pending = None
        try:
            response.result()
        except Exception as error:
            self.say_failed(step, error)

    def say_failed(self, step: int, error: Exception) -> None:
        # Orbax reports a failed save a second time, at the next one: take that now.
        with contextlib.suppress(Exception):
            self.checkpointer.wait()
        if is_main_process():
            # The remains of the failed save must not fill the disk further.
            for partial in self.folder.glob(f"{step}.*"):
                shutil.rmtree(partial, ignore_errors=True)
        self.checkpointer.reload()
        reason = str(error).strip().splitlines()[0][:300]
        whole = self.steps
        say(
            f"warning: the checkpoint at step {step} could not be written ({reason}); "
            f"the last complete one is {f'of step {whole[-1]}' if whole else 'none'}"
        )

    def restore(
        self, program: Program, begin: Callable[[Any], TrainState] | None = None
    ) -> TrainState | None:
        """Load the newest whole checkpoint into the program's layout; None if none.

        `begin` makes a portable state of the parameters that a run begins with; None: it
        is not one that began with parameters.

        Damaged ones after it are set aside under another name, never deleted. Raises
        OSError, with all left as they are, if there are checkpoints and none is whole.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                state = self.load_state(step, program, begin)
            except OSError as error:
                damaged[step] = str(error)
                continue
            for other, reason in damaged.items():
                say(f"warning: {reason}")
                self.set_aside(other)
            return program.adopt(state)
        if damaged:
            raise OSError(
                f"no checkpoint in {self.folder} can be loaded; give another --workdir, or "
                f"empty this one to start again ({'; '.join(damaged.values())})"
            )
        return None

    def load_state(
        self,
        step: int,
        program: Program,
        begin: Callable[[Any], TrainState] | None = None,
    ) -> TrainState:
        """Load a state; parts that only another strategy needs are left out."""
        like = program.abstract_portable
        if begin and self.begins(step):
            return begin(self.load(step, {"params": like.params})["params"])
        comm, remark = self.usable(step, like.comm, program)
        like = like._replace(comm=comm)
        state = join_state(self.load(step, split_state(like)), like)
        if remark:
            say(remark)
        return state

    def begins(self, step: int) -> bool:
        """Tell whether a checkpoint has only the parameters that a run begins with."""
        try:
            parts = self.checkpointer.checkpointables_metadata(step).metadata
        except Exception:  # damaged: loading will report it
            return False
        return set(parts) == {"params"}

    def usable(self, step: int, comm: Any, program: Program) -> tuple[Any, str]:
        """Return the `comm` of a checkpoint that the program can use, and what to say.

        It has the shapes of `comm`, or those of another number of replicas; else it is (),
        and what the checkpoint has there is lost.
        """
        try:
            found = self.checkpointer.checkpointables_metadata(step).metadata.get("comm")
        except Exception:  # damaged: loading will report it
            return comm, ""
        there = shapes(found)
        if there == shapes(comm):
            return comm, ""
        if resized := at_degree_of(comm, there, program.mesh):
            return resized, (
                f"the checkpoint at step {step} is of another number of replicas; what "
                "they kept of their gradients is dealt out anew, and its sums stay"
            )
        if there:
            return (), (
                f"warning: the checkpoint at step {step} holds what only its own strategy "
                "and exchange can use (residuals, late gradients, meetings); it is not "
                "taken over"
            )
        return (), ""

    def load(self, step: int, parts: dict[str, Any]) -> dict[str, Any]:
        """Load the named parts of a checkpoint into the given shapes and shardings.

        Raises OSError where they cannot be read, or their bits are not those saved.
        """
        try:
            metadata = self.checkpointer.checkpointables_metadata(step).custom_metadata
            loaded = self.checkpointer.load_checkpointables(step, parts)
        except Exception as error:  # Orbax and TensorStore raise many kinds
            reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
            raise OSError(f"the checkpoint at step {step} is damaged: {reason}") from error
        for name, value in digests(loaded).items():
            if value != metadata[name]:
                raise OSError(
                    f"the checkpoint at step {step} is damaged: its {name} are not the "
                    "ones that were saved"
                )
        return loaded

    def set_aside(self, step: int) -> None:
        multihost_utils.sync_global_devices("damaged checkpoint")
        if is_main_process():
            name = f"damaged-{step}-{time.time_ns()}"
            (self.folder / str(step)).rename(self.folder / name)
        multihost_utils.sync_global_devices("damaged checkpoint set aside")
        self.checkpointer.reload()


def saved_digests(workdir: pathlib.Path, step: int) -> dict[str, int]:
    """Return the digests of the bits of each part of a checkpoint, as they were saved."""
    with ocp.training.Checkpointer(workdir.absolute() / "checkpoints") as saved:
        return saved.checkpointables_metadata(step).custom_metadata


def split_state(state: TrainState) -> dict[str, Any]:
    """Name the parts that are saved apart, so that parameters can be loaded alone."""
    parts = {
        "params": state.params,
        "opt": state.opt,
        "comm": state.comm,
        "progress": {"step": state.step, "scale": state.scale},
    }
    return {name: part for name, part in parts.items() if jax.tree.leaves(part)}


def join_state(parts: dict[str, Any], like: TrainState) -> TrainState:
    return TrainState(
        step=parts["progress"]["step"],
        params=parts["params"],
        opt=parts.get("opt", like.opt),
        comm=parts.get("comm", like.comm),
        scale=parts["progress"]["scale"],
    )


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Map the paths of a tree's leaves to their shapes, whatever its containers are."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape)
        for path, x in jax.tree.leaves_with_path(tree)
    }


def digests(parts: dict[str, Any]) -> dict[str, int]:
    """Return for each part a sum of its bits, the same for every sharding."""
    return {name: digest(part) for name, part in parts.items()}


def digest(tree: Any) -> int:
    """Return a number of 32 bits. One program for all leaves would copy all at once."""
    total = 0
    for index, leaf in enumerate(jax.tree.leaves(tree)):
        # One after the other: emulated devices that run several sums at once may wait for
        # each other for ever.
        words = int(sum_bits(leaf))
        # An odd factor for each leaf changes the sum if two leaves change places.
        total = (total * 3 + words * (2 * index + 1)) % 2**32
    return total


sum_bits = jax.jit(bit_sum)
