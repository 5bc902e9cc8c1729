"""A Program: all that the training loop sees of a strategy, and the shared arithmetic.

Every strategy is a constructor of a Program. Strategies differ in where arrays live and in
which collectives run. They all share `gradients` and `update` below.

Only sums cross devices and microbatches. The loss and the gradient are summed over tokens
and divided once, by the global number of tokens, or by the sum of their weights if they
have any. That is exact even if devices have different numbers of tokens; a mean of means is
not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Params = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Key = jax.Array

AXIS = "data"  # the mesh axis of the replicas
STAGE = "stage"  # the mesh axis of the pipeline's stages
FSDP = "fsdp"  # the mesh axis over which parameters are split too
SLICE = "slice"  # the mesh axis of the slowest links
# The mesh axes over which the batch is split, the one of the slowest links first.
BATCH_AXES = (SLICE, AXIS, FSDP)
TENSOR = "tensor"  # the mesh axis over which single layers are split
# (pattern of a parameter's path, its dim counted from the last (-1), into how many parts
# that may be cut, the name of that number; no name: whole where it cannot be cut)
TensorDims = tuple[tuple[str, int, int, str], ...]


class TrainState(NamedTuple):
    step: jax.Array  # int32[], batches consumed: the position in the data
    params: Params
    opt: optax.OptState
    comm: Any  # what the exchange keeps; differs from replica to replica
    scale: Any  # the loss scale, float32[] in the field `value`, and what goes with it


def same(state: TrainState) -> TrainState:
    return state


def one_batch(batches: Callable[[int], Batch], number: int) -> Batch:
    """Draw the batch of this number: a synchronous step takes one."""
    return batches(number)


def itself(batches: Callable[[int], Batch], number: int) -> Callable[[int], Batch]:
    """Hand over the function: the step draws the numbers that it needs."""
    return batches


def nothing() -> None: ...


class Program(NamedTuple):
    init: Callable[[Key], TrainState]  # already laid out on the mesh
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]  # jitted, donates
    params: Callable[[TrainState], Params]  # one consensus copy
    place: Callable[[Batch], Batch]  # this process's rows -> global device arrays
    mesh: jax.sharding.Mesh
    abstract: TrainState  # shapes, types and shardings of the state
    # What is saved: parameters and optimizer state as every strategy has them, and in
    # `comm` what only this one knows. `adopt` takes it back; where `comm` is (), because
    # the state comes from another strategy or degree, it begins that part anew.
    portable: Callable[[TrainState], TrainState] = same
    adopt: Callable[[TrainState], TrainState] = same
    saved: TrainState | None = None  # like `abstract`, of `portable`; None: the same
    # (a function from numbers to placed batches, the number of the step) -> what `step`
    # takes. Number n names the rows [nB, (n + 1)B) of the training text, whatever draws it.
    draw: Callable[[Callable[[int], Batch], int], Any] = one_batch
    close: Callable[[], None] = nothing  # ends what the program has started
    workers: int = 0  # of a parameter server

    @property
    def abstract_portable(self) -> TrainState:
        return self.saved or self.abstract


def no_metrics(grads: Params) -> Metrics:
    return {}


class Learner(NamedTuple):
    """What a strategy spreads; it knows nothing of devices."""

    # What is learnt (lm/task.py:Task). A strategy reads its init, loss, cast, tensor_dims
    # and stages.
    task: Any
    optimizer: optax.GradientTransformationExtraArgs
    scaling: Any  # lm/precision.py:Scaling
    learning_rate: Callable[[optax.OptState], jax.Array]
    seed: int  # of the randomness inside steps (dropout)
    num_steps: int = 0  # of the run, up to where the program ends; 0: not known
    # (state, mean loss of the step) -> the loss that the optimizer is told
    told_loss: Callable[[TrainState, jax.Array], jax.Array] = lambda state, loss: loss
    # (gradient of the mean loss, before the optimizer) -> more metrics of the step
    measure: Callable[[Params], Metrics] = no_metrics
    offload: bool = False  # the optimizer's state lies in the host's memory (offload.py)

    def initial_state(self, key: Key, comm: Any = ()) -> TrainState:
        params = self.task.init(key)
        return TrainState(
            step=jnp.int32(0),
            params=params,
            opt=self.optimizer.init(params),
            comm=comm,
            scale=self.scaling.init(),
        )

    def step_key(self, step: jax.Array) -> Key:
        return jax.random.fold_in(jax.random.key(self.seed), step)

    def exchange_key(self, step: jax.Array) -> Key:
        """Return the key of a step's exchange, which no row of any step draws from.

        A row's key is the step's, with the row's number folded in. The exchange folds in
        numbers too, so it begins from a number that no step has.
        """
        return self.step_key(jnp.uint32(2**31) + step.astype(jnp.uint32))


def begin(learner: Learner, program: Program, params: Params) -> TrainState:
    """Return a portable state before the first step, with parameters from elsewhere.

    They are ordinary ones, and lie as those of the program's portable state do. The other
    parts are made where they belong.
    """
    like = program.abstract_portable
    places = jax.tree.map(lambda x: x.sharding, like._replace(params=(), comm=()))

    @partial(jax.jit, out_shardings=places)
    def others(params: Params) -> TrainState:
        return TrainState(
            step=jnp.int32(0),
            params=(),
            opt=learner.optimizer.init(params),
            comm=(),
            scale=learner.scaling.init(),
        )

    return others(params)._replace(params=params)


def gradients(
    loss: Callable[[Params, Batch, Key], tuple[jax.Array, Metrics]],
    params: Params,
    batch: Batch,
    key: Key,
    scale: jax.Array,
    accumulation: int,
    reduce: Callable[[Params], Params] = lambda grads: grads,
    measure_noise: bool = False,
    turns: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[Params, Metrics]:
    """Sum `scale` * gradient and the loss's sums over the batch, in microbatches.

    `reduce` is applied to the gradients of each microbatch before they are added up.
    `measure_noise` adds the sums that `noise` needs; it needs whole gradients. `turns` are
    the first of the microbatches that count and the one after the last; None: all count.
    """

    def scaled_loss(params: Params, microbatch: Batch):
        loss_sum, sums = loss(params, microbatch, key)
        return loss_sum * scale, sums

    def one(microbatch: Batch) -> tuple[Params, Metrics]:
        grads, sums = jax.grad(scaled_loss, has_aux=True)(params, microbatch)
        if measure_noise:
            square = optax.tree.norm(grads, squared=True) / scale**2
            sums |= {
                "unit_squares": square / divisor(weight_of(sums)),
                "units": unit_weight(sums),
            }
        return reduce(grads), sums

    if accumulation == 1 and turns is None:
        return one(batch)

    def body(total, microbatch: Batch):
        return jax.tree.map(jnp.add, total, one(microbatch)), None

    def turn(index: jax.Array, total):
        return body(total, jax.tree.map(lambda x: x[index], microbatches))[0]

    microbatches = jax.tree.map(partial(split_rows, num=accumulation), batch)
    first = jax.tree.map(lambda x: x[0], microbatches)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(one, first))
    if turns is not None:
        return jax.lax.fori_loop(*turns, turn, zeros)
    return jax.lax.scan(body, zeros, microbatches)[0]


def split_rows(x: jax.Array, num: int) -> jax.Array:
    """[B, ...] -> [num, B / num, ...]: microbatch m takes the rows m, m + num, ...

    Every num-th row, and not a run of rows, so that each row stays on its device.
    """
    return x.reshape(x.shape[0] // num, num, *x.shape[1:]).swapaxes(0, 1)


def weight_of(sums: Metrics) -> jax.Array:
    """Return the sum of the targets' weights: how many there are, if they have none."""
    return sums.get("weight", sums["tokens"])


def divisor(weight: jax.Array) -> jax.Array:
    """Return the weight, and 1 where it is 0, because nothing at all is divided by it."""
    return jnp.where(weight > 0, weight, 1.0)


def unit_weight(sums: Metrics) -> jax.Array:
    """Return the sum of squared weights over that of weights; without weights 1, or 0."""
    return sums.get("weight_squares", sums["tokens"]) / divisor(weight_of(sums))


def total_weight(sums: Metrics, scale: Any) -> jax.Array:
    """Return what a sum of scaled gradients is divided by: the weight, the loss scale."""
    return divisor(weight_of(sums)) * scale.value


def divided(sums: Params, weight: jax.Array) -> Params:
    inverse = 1.0 / weight
    return jax.tree.map(lambda x: x * inverse, sums)


def update(
    learner: Learner,
    state: TrainState,
    params: Params,
    grads: Params,
    sums: Metrics,
) -> tuple[TrainState, Metrics]:
    """Apply one step, given the mean gradient and the sums over the whole global batch.

    If the loss or the gradient is not finite, only the step count and the loss scale
    change. All devices see the same sums, so all of them skip together. `params` is
    `state.params` in the layout of the optimizer state.
    """
    norm = optax.tree.norm(grads)
    loss = sums["loss"] / divisor(weight_of(sums))
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    told = learner.told_loss(state, loss)
    updates, opt = learner.optimizer.update(grads, state.opt, params, value=told)

    def keep(new, old):
        return jax.tree.map(partial(jnp.where, finite), new, old)

    new_state = state._replace(
        step=state.step + 1,
        params=keep(optax.apply_updates(params, updates), params),
        opt=keep(opt, state.opt),
        scale=learner.scaling.update(state.scale, finite, sums),
    )
    metrics = (
        noise(sums, norm)
        | learner.measure(grads)
        | {
            "grad_norm": norm,
            "finite": finite,
            "learning_rate": learner.learning_rate(new_state.opt),
        }
        | learner.scaling.told(state.scale)
    )
    return new_state, metrics


def noise(sums: Metrics, norm: jax.Array) -> Metrics:
    """Replace the units' sums by unbiased estimates of the gradient's square and variance.

    A unit is one microbatch on one device. Its n_u tokens have the gradient sum g_u; all N
    tokens have the sum g, and the mean g / N has the given norm. If a token's gradient has
    the mean G and the covariance S, then E |g_u|^2 / n_u = n_u |G|^2 + tr S and
    E |g|^2 / N = N |G|^2 + tr S, for any n_u. The noise scale is tr S / |G|^2, in tokens
    (McCandlish et al. 2018, 2.2 and A.1). With a single unit it is not a number.

    If tokens have weights, n_u and N are the sums of weights, and tr S is multiplied by the
    sum of their squares over n_u, or over N (`unit_weight`; 1 without weights).
    """
    sums = dict(sums)
    if "units" not in sums:
        return sums
    units, squares = sums.pop("units"), sums.pop("unit_squares")
    weight, square = divisor(weight_of(sums)), norm * norm
    one = unit_weight(sums)
    variance = (squares - weight * square) / (units - one)
    variance = jnp.where(units > one, variance, jnp.nan)
    mean_square = square - variance * one / weight
    return sums | {"grad_variance": variance, "grad_square": mean_square}


def abstract(init: Callable[[Key], TrainState], shardings: TrainState) -> TrainState:
    """Return the state's shapes and types with the given shardings; allocate nothing."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(init, jax.random.key(0)),
        shardings,
    )
