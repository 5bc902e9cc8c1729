"""The optimizers: each is linear in its learning rate, which is 1 here.

lm/optim.py chains one of them with clipping and a schedule.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from lm.baum_welch import baum_welch
from lm.task import Params

Selection = Callable[[Params], Params]  # params -> bool tree
# Each row takes the config and two Selections: which parameters decay, and which are hidden
# matrices.
OPTIMIZERS = {
    "sgd": lambda c, decays, hidden: optax.sgd(1.0),
    "momentum": lambda c, decays, hidden: optax.sgd(
        1.0, momentum=c.b1, nesterov=c.nesterov
    ),
    "adagrad": lambda c, decays, hidden: adagrad(c.eps),
    # eps is added to the root: inside the root, 1e-8 would hide gradients below 1e-4.
    "rmsprop": lambda c, decays, hidden: optax.rmsprop(
        1.0, decay=c.b2, eps=c.eps, eps_in_sqrt=False
    ),
    "adam": lambda c, decays, hidden: optax.adam(1.0, b1=c.b1, b2=c.b2, eps=c.eps),
    "adamw": lambda c, decays, hidden: optax.adamw(
        1.0, b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay, mask=decays
    ),
    "lamb": lambda c, decays, hidden: optax.lamb(
        1.0, b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay, mask=decays
    ),
    "lion": lambda c, decays, hidden: optax.lion(
        1.0, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay, mask=decays
    ),
    "adafactor": lambda c, decays, hidden: optax.adafactor(
        1.0,
        min_dim_size_to_factor=32,
        weight_decay_rate=c.weight_decay or None,
        weight_decay_mask=decays,
    ),
    "muon": lambda c, decays, hidden: optax.chain(
        muon(c.eps, c.b1, c.b2, hidden),
        # contrib.muon cannot mask the decay of the parameters that it leaves to Adam.
        optax.add_decayed_weights(-c.weight_decay, decays),
    ),
}
L2 = ("sgd", "momentum", "adagrad", "rmsprop", "adam")  # their decay is not decoupled
# These do not descend: a closed form turns expected counts, the gradients, into parameters.
MAXIMIZERS = {"baum_welch": lambda c, decays, hidden: baum_welch(c.forgetting, c.smoothing)}


def narrow_moments(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keep the arrays of an optimizer's state in bfloat16; updates compute in float32.

    bfloat16 has 8 bits: a moment that changes by less than a part in 512 stays as it is. So
    the decay rates must be well below 1 (OptimConfig.validate).
    """

    def cast(tree, source, target):
        return jax.tree.map(
            lambda x: x.astype(target) if x.dtype == source and x.ndim else x, tree
        )

    def init(params: Params):
        return cast(tx.init(params), jnp.float32, jnp.bfloat16)

    def update(updates: Params, state, params: Params = None):
        wide = cast(state, jnp.bfloat16, jnp.float32)
        updates, wide = tx.update(updates, wide, params)
        return updates, cast(wide, jnp.float32, jnp.bfloat16)

    return optax.GradientTransformation(init, update)


def adagrad(eps: float) -> optax.GradientTransformation:
    """Divide by the root of the sum of all squared gradients (Duchi et al. 2011, fig. 1).

    optax.adagrad starts the sum at 0.1 and adds eps inside the root. Both are larger than
    the squared gradients of a language model, so its updates would be those of plain SGD.
    """

    def init(params: Params) -> Params:
        return jax.tree.map(jnp.zeros_like, params)

    def update(grads: Params, sums: Params, params: Params = None) -> tuple[Params, Params]:
        sums = jax.tree.map(lambda s, g: s + g * g, sums, grads)
        return jax.tree.map(lambda g, s: -g / (jnp.sqrt(s) + eps), grads, sums), sums

    return optax.GradientTransformation(init, update)


def muon(
    eps: float, b1: float, b2: float, hidden: Selection
) -> optax.GradientTransformation:
    """Muon for hidden matrices (Jordan et al. 2024), Adam for the rest.

    Muon's momentum is 0.95. Muon and this Adam take Nesterov's momentum in the form of
    Dozat 2016: the mean of past gradients and the newest gradient are each divided by the
    sum of their weights so far. Jordan et al. do not divide. So the newest gradient weighs
    more here than in their code: 1.46 times as much at the second update, 1.07 times at the
    tenth, and as much in the end.
    """

    def dimensions(params: Params):
        return jax.tree.map(
            lambda ours: contrib.MuonDimensionNumbers() if ours else None, hidden(params)
        )

    return contrib.muon(
        1.0,
        eps=eps,
        adam_b1=b1,
        adam_b2=b2,
        # Give matrices updates of the size of AdamW's, so that one learning rate suits them
        # and the parameters that Adam updates (Liu et al. 2025, 2.2).
        consistent_rms=0.2,
        muon_weight_dimension_numbers=dimensions,
    )
