"""Exchange of gradients between replicas, as optax transformations that compose.

`init(params) -> comm`, `update(sums, comm, params, weight=, key=) -> (means, comm)`: given
one replica's summed gradients, return the mean over the tokens of all replicas. It runs
where the mesh axes are bound (inside shard_map or pmap). `weight` is what the sum over
replicas is divided by, once: the global tokens times the loss scale. `key` is another one
in each step and the same on every replica. `comm` is what is kept from step to step, and
may differ from replica to replica.

What is kept (a residual, late gradients) is kept in means, for the numbers of tokens and
the loss scale change. `build_exchange` (parallel/exchange/config.py) composes what a config
asks for.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from parallel.collectives import psum_in_one
from parallel.exchange.algorithms import ALGORITHMS
from parallel.exchange.codec import Across, Codec
from parallel.forms.fragments import subtree
from parallel.program import AXIS, divided

Exchange = optax.GradientTransformationExtraArgs
Axes = tuple[str, ...]


def all_reduce(algorithm: str = "psum", axes: Axes = (AXIS,)) -> Exchange:
    """Sum over replicas by the compiler's all-reduce, or by an algorithm written out."""

    def update(sums, comm, params=None, *, weight, key=None):
        if algorithm == "psum":
            total = psum_in_one(sums, axes)
        else:
            flat, unflatten = ravel_pytree(sums)
            total = unflatten(ALGORITHMS[algorithm].all_reduce(flat, axes))
        return divided(total, weight), comm

    return Exchange(lambda params: (), update)


def grouped(groups: Callable[[Any], list[set]], inner: Exchange) -> Exchange:
    """Exchange groups of leaves, each on its own; `groups` gives the paths of each."""

    def pick(tree, paths: set):
        leaves = jax.tree.leaves_with_path(tree)
        return subtree((path, leaf) for path, leaf in leaves if path in paths)

    def init(params):
        return [inner.init(pick(params, paths)) for paths in groups(params)]

    def update(sums, comm, params=None, *, weight, key=None):
        means, new_comm = {}, []
        for number, (paths, state) in enumerate(zip(groups(sums), comm, strict=True)):
            some, state = inner.update(
                pick(sums, paths),
                state,
                None if params is None else pick(params, paths),
                weight=weight,
                key=None if key is None else jax.random.fold_in(key, number),
            )
            new_comm.append(state)
            means |= dict(jax.tree.leaves_with_path(some))
        return jax.tree.map_with_path(lambda path, _: means[path], sums), new_comm

    return Exchange(init, update)


def bucketed(num_bytes: int, inner: Exchange) -> Exchange:
    """Exchange the leaves in buckets of about `num_bytes`, each on its own.

    The last leaves go first, because the backward pass finishes them first. So a bucket can
    travel while the next gradients are computed (Li et al. 2020, PyTorch DDP, 3.2.3).
    """

    def buckets(tree) -> list[set]:
        """Return the paths of the leaves of each bucket."""
        found, size = [], num_bytes
        for path, leaf in reversed(jax.tree.leaves_with_path(tree)):
            if size >= num_bytes:
                found.append(set())
                size = 0
            found[-1].add(path)
            size += leaf.size * leaf.dtype.itemsize
        return found

    return grouped(buckets, inner)


def guarded(inner: Exchange, axes: Axes = (AXIS,)) -> Exchange:
    """Make the mean not finite on all replicas where one replica's sums are not.

    An `inner` that keeps something might hide an overflow, or keep it for later.
    """

    def update(sums, comm, params=None, *, weight, key=None):
        finite = jnp.isfinite(optax.tree.norm(sums))
        overflows = jax.lax.psum(jnp.where(finite, 0.0, 1.0), axes)
        means, comm = inner.update(sums, comm, params, weight=weight, key=key)
        return jax.tree.map(lambda x: jnp.where(overflows == 0, x, jnp.nan), means), comm

    return Exchange(inner.init, update)


def clipped(max_norm: float, inner: Exchange, axes: Axes = (AXIS,)) -> Exchange:
    """Scale each replica's share of the mean down to the norm max_norm / sqrt(replicas).

    The optimizer clips what an exchange returns. An exchange that keeps what it does not
    send would keep a single huge gradient as it is, and send it bit by bit for many steps;
    clipped one by one, these would fill all of them. So it is clipped before it is kept.

    Shares that have nothing in common sum to about sqrt(replicas) times their size. So
    max_norm is in the unit of the optimizer's own clipping (Lin et al. 2018, 3.2).
    """

    def update(sums, comm, params=None, *, weight, key=None):
        limit = max_norm * weight / jax.lax.axis_size(axes) ** 0.5
        norm = optax.tree.norm(sums)
        sums = jax.tree.map(lambda x: x * jnp.minimum(1, limit / norm), sums)
        return inner.update(sums, comm, params, weight=weight, key=key)

    return Exchange(inner.init, update)


def compressed(
    codec: Codec,
    axes: Axes = (AXIS,),
    algorithm: str = "psum",
    feedback: float = 1.0,
) -> Exchange:
    """Sum what the codec lets through of each replica's share of the mean.

    `algorithm` sums what a linear codec sends; other codecs know their own way.

    Error feedback (Seide et al. 2014; Karimireddy et al. 2019): what was lost is added to
    the next share, so that over time nothing is. `feedback` is the part of it that is
    added. Below 1 the rest is forgotten, as a momentum forgets (Sarfi et al. 2025,
    SparseLoCo); 0: no error feedback.
    """

    across = Across(axes, ALGORITHMS[algorithm].all_reduce)

    def init(params):
        residual = jax.tree.map(jnp.zeros_like, params) if feedback else ()
        return {"codec": codec.init(params), "residual": residual}

    def update(sums, comm, params=None, *, weight, key=None):
        shares = divided(sums, weight)
        if feedback:
            shares = jax.tree.map(lambda x, r: x + feedback * r, shares, comm["residual"])
        means, lost, state = codec.sum(shares, comm["codec"], key, across)
        return means, {"codec": state, "residual": lost if feedback else ()}

    return Exchange(init, update)


def delayed(num_steps: int, inner: Exchange, compensation: float = 0.0) -> Exchange:
    """Return the mean of `num_steps` steps ago, zeros at first; 0 is `inner` itself.

    `compensation` corrects the late gradient g, taken at the parameters w', to first order
    for today's parameters w: g + compensation * g * g * (w - w') (DC-ASGD, Zheng
    et al. 2017, 4).
    """
    if num_steps == 0:
        return inner

    def queue(tree):
        return jax.tree.map(lambda x: jnp.zeros((num_steps, *x.shape), x.dtype), tree)

    def init(params):
        comm = {"inner": inner.init(params), "means": queue(params), "step": jnp.int32(0)}
        return comm | ({"params": queue(params)} if compensation else {})

    def update(sums, comm, params=None, *, weight, key=None):
        means, inner_comm = inner.update(
            sums, comm["inner"], params, weight=weight, key=key
        )
        slot = comm["step"] % num_steps
        late = jax.tree.map(lambda q: q[slot], comm["means"])
        put = partial(jax.tree.map, lambda q, x: q.at[slot].set(x))
        new = {"inner": inner_comm, "means": put(comm["means"], means)}
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
