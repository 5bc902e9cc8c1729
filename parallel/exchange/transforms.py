"""Exchange of gradients between replicas, as optax transformations that compose.

`init(params) -> comm`, `update(grads, comm, params, weight=, key=) -> (grads, comm)`: takes
one replica's summed gradients and returns the sum over replicas. It runs where the mesh
axes are bound (inside shard_map or pmap). `comm` may differ from replica to replica.
`weight` is the factor from a mean gradient to this sum: the global tokens times the loss
scale. `key` is a new one in each step and the same on every replica.

An exchange that keeps something from step to step (a residual, late gradients) belongs
inside `in_means`, because the number of tokens and the loss scale change. `build_exchange`
(parallel/exchange/config.py) composes the exchange that a config asks for.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from parallel.collectives import psum_in_one
from parallel.exchange.algorithms import ALGORITHMS
from parallel.exchange.codec import Across, Codec
from parallel.program import AXIS

Exchange = optax.GradientTransformationExtraArgs
Axes = tuple[str, ...]


def all_reduce(algorithm: str = "psum", axes: Axes = (AXIS,)) -> Exchange:
    """Sum over replicas: by the compiler's all-reduce, or an algorithm written out."""

    def update(grads, comm, params=None, *, weight=None, key=None):
        if algorithm == "psum":
            return psum_in_one(grads, axes), comm
        flat, unflatten = ravel_pytree(grads)
        return unflatten(ALGORITHMS[algorithm](flat, axes)), comm

    return Exchange(lambda params: (), update)


def bucketed(num_bytes: int, inner: Exchange) -> Exchange:
    """Exchange the leaves in buckets of about `num_bytes`, each on its own.

    The last leaves go first, because the backward pass finishes them first. So a bucket can
    travel while the next gradients are computed (Li et al. 2020, PyTorch DDP, 3.2.3).
    """

    def buckets(tree) -> list[list[int]]:
        found, size = [], num_bytes
        for index, leaf in reversed(list(enumerate(jax.tree.leaves(tree)))):
            if size >= num_bytes:
                found.append([])
                size = 0
            found[-1].append(index)
            size += leaf.size * leaf.dtype.itemsize
        return found

    def pick(tree, indices: list[int]):
        leaves = jax.tree.leaves(tree)
        return [leaves[i] for i in indices]

    def init(params):
        return [inner.init(pick(params, indices)) for indices in buckets(params)]

    def update(grads, comm, params=None, *, weight=None, key=None):
        leaves, structure = jax.tree.flatten(grads)
        new_comm = []
        for number, (indices, state) in enumerate(zip(buckets(grads), comm, strict=True)):
            some, state = inner.update(
                pick(grads, indices),
                state,
                None if params is None else pick(params, indices),
                weight=weight,
                key=None if key is None else jax.random.fold_in(key, number),
            )
            new_comm.append(state)
            for index, leaf in zip(indices, some, strict=True):
                leaves[index] = leaf
        return structure.unflatten(leaves), new_comm

    return Exchange(init, update)


def in_means(inner: Exchange, axes: Axes = (AXIS,)) -> Exchange:
    """Give `inner` mean gradients instead of sums, and tell it of an overflow.

    Divide by `weight` before `inner` and multiply after it. If one replica's gradient is
    not finite, make the sum not finite on all replicas: `inner` might hide the overflow, or
    keep it for later.
    """

    def update(grads, comm, params=None, *, weight, key=None):
        finite = jnp.isfinite(optax.tree.norm(grads))
        overflows = jax.lax.psum(jnp.where(finite, 0.0, 1.0), axes)
        means = jax.tree.map(lambda g: g / weight, grads)
        means, comm = inner.update(means, comm, params, weight=1.0, key=key)
        back = jnp.where(overflows == 0, weight, jnp.nan)
        return jax.tree.map(lambda g: g * back, means), comm

    return Exchange(inner.init, update)


def compressed(
    codec: Codec,
    axes: Axes = (AXIS,),
    algorithm: str = "psum",
    error_feedback: bool = True,
) -> Exchange:
    """Sum with a codec; with feedback, add what it lost to the next gradient.

    `algorithm` sums what a linear codec sends; other codecs have their own way. Over time
    error feedback loses nothing (Seide et al. 2014; Karimireddy et al. 2019).
    """

    across = Across(axes, ALGORITHMS[algorithm])

    def init(params):
        residual = jax.tree.map(jnp.zeros_like, params) if error_feedback else ()
        return {"codec": codec.init(params), "residual": residual}

    def update(grads, comm, params=None, *, weight=None, key=None):
        if error_feedback:
            grads = jax.tree.map(jnp.add, grads, comm["residual"])
        total, lost, state = codec.sum(grads, comm["codec"], key, across)
        return total, {"codec": state, "residual": lost if error_feedback else ()}

    return Exchange(init, update)


def delayed(num_steps: int, inner: Exchange, compensation: float = 0.0) -> Exchange:
    """Return the sum of `num_steps` steps ago, zeros at first; 0 is `inner` itself.

    `compensation` corrects the late gradient g, taken at the parameters w', to first order
    for today's parameters w: g + compensation * g * g * (w - w'), in means (DC-ASGD, Zheng
    et al. 2017, 4).
    """
    if num_steps == 0:
        return inner

    def queue(tree):
        return jax.tree.map(lambda x: jnp.zeros((num_steps, *x.shape), x.dtype), tree)

    def init(params):
        comm = {"inner": inner.init(params), "grads": queue(params), "step": jnp.int32(0)}
        return comm | ({"params": queue(params)} if compensation else {})

    def update(grads, comm, params=None, *, weight=None, key=None):
        grads, inner_comm = inner.update(
            grads, comm["inner"], params, weight=weight, key=key
        )
        slot = comm["step"] % num_steps
        late = jax.tree.map(lambda q: q[slot], comm["grads"])
        put = partial(jax.tree.map, lambda q, x: q.at[slot].set(x))
        new = {"inner": inner_comm, "grads": put(comm["grads"], grads)}
        if compensation:
            then = jax.tree.map(lambda q: q[slot], comm["params"])
            late = jax.tree.map(
                lambda g, now, old: g + compensation * g * g * (now - old),
                late,
                params,
                then,
            )
            new["params"] = put(comm["params"], params)
        return late, new | {"step": comm["step"] + 1}

    return Exchange(init, update)
