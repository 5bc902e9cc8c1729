"""Checkpoints by Orbax: asynchronous, the last few and the best, restored anywhere.

A state is restored with the *target* program's shardings, so a run goes on under another
strategy or number of devices. Each checkpoint carries a digest of the state's bits, an
integer sum that no sharding changes; a checkpoint that does not load, or loads other bits,
is damaged, and the newest whole one is used.
"""

import contextlib
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from experiments.startup import is_main_process, say
from parallel.program import Program, TrainState

UINTS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


class Checkpoints:
    """The checkpoints of one workdir. Use as a context manager."""

    def __init__(self, folder: pathlib.Path, keep: int):
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["val_loss"],
            reverse=True,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self.folder = folder.absolute()
        self.checkpointer = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(keep), best]
            ),
            cleanup_tmp_directories=True,
        )
        self.pending: tuple[int, Any] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.wait()
        self.checkpointer.close()

    @property
    def steps(self) -> list[int]:
        return [checkpoint.step for checkpoint in self.checkpointer.checkpoints]

    def best_step(self) -> int | None:
        scored = [
            (checkpoint.metrics["val_loss"], checkpoint.step)
            for checkpoint in self.checkpointer.checkpoints
            if checkpoint.metrics
        ]
        return min(scored)[1] if scored else None

    def save(self, step: int, state: TrainState, val_loss: float | None) -> None:
        """Start to save; the arrays are copied to the host before this returns."""
        self.wait()
        metrics = None if val_loss is None else {"val_loss": val_loss}
        try:
            response = self.checkpointer.save_checkpointables_async(
                step,
                split_state(state),
                force=True,
                metrics=metrics,
                custom_metadata={"digest": int(digest(state))},
            )
        except Exception as error:  # a full disk has many faces in Orbax
            self.say_failed(step, error)
        else:
            self.pending = (step, response)

    def wait(self) -> None:
        """Wait for the save in progress; a failed one is told and the run goes on."""
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
            # What it left must not fill the disk further.
            for partial in self.folder.glob(f"{step}.*"):
                shutil.rmtree(partial, ignore_errors=True)
        self.checkpointer.reload()
        reason = str(error).strip().splitlines()[0][:300]
        whole = self.steps
        say(
            f"warning: the checkpoint at step {step} could not be written ({reason}); "
            f"the last complete one is {f'of step {whole[-1]}' if whole else 'none'}"
        )

    def restore(self, program: Program) -> TrainState | None:
        """Load the newest whole checkpoint into the program's layout; None if none.

        Damaged ones are set aside under another name, never deleted.
        """
        damaged = []
        for step in reversed(self.steps):
            try:
                return self.load(step, program.abstract)
            except Exception as error:
                reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
                say(f"warning: the checkpoint at step {step} is damaged: {reason}")
                self.set_aside(step)
                damaged.append(step)
        if damaged:
            raise OSError(
                f"no checkpoint in {self.folder} is whole (damaged: {damaged}); "
                "give another --workdir, or empty this one to start again"
            )
        return None

    def load(self, step: int, abstract: TrainState) -> TrainState:
        metadata = self.checkpointer.checkpointables_metadata(step)
        parts = self.checkpointer.load_checkpointables(step, split_state(abstract))
        state = join_state(parts, abstract)
        if int(digest(state)) != metadata.custom_metadata["digest"]:
            raise OSError("its arrays are not the ones that were saved")
        return state

    def load_params(self, step: int, abstract_params: Any) -> Any:
        return self.checkpointer.load_checkpointables(step, {"params": abstract_params})[
            "params"
        ]

    def set_aside(self, step: int) -> None:
        multihost_utils.sync_global_devices("damaged checkpoint")
        if is_main_process():
            (self.folder / str(step)).rename(self.folder / f"damaged-{step}")
        multihost_utils.sync_global_devices("damaged checkpoint set aside")
        self.checkpointer.reload()


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


@jax.jit
def digest(tree: Any) -> jax.Array:
    """Return uint32[], a sum of the bits of all leaves, the same for every sharding."""
    total = jnp.uint32(0)
    for index, leaf in enumerate(jax.tree.leaves(tree)):
        words = jax.lax.bitcast_convert_type(leaf, UINTS[leaf.dtype.itemsize])
        # An odd factor for each leaf, so that two leaves do not change places unseen.
        total = total * jnp.uint32(3) + jnp.sum(words, dtype=jnp.uint32) * jnp.uint32(
            2 * index + 1
        )
    return total
