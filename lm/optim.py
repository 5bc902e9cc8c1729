"""Optimizers, learning-rate schedules and clipping, all from optax, as one chain.

clip -> optimizer at learning rate 1 -> schedule [-> reduce on plateau]. Every optimizer
here is linear in its learning rate, so one schedule link serves them all, and weight decay
is decoupled and follows the schedule (Loshchilov and Hutter 2019).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from lm.baum_welch import baum_welch

OPTIMIZERS = {
    "sgd": lambda c, mask: optax.chain(decay(c, mask), optax.sgd(1.0)),
    "momentum": lambda c, mask: optax.chain(
        decay(c, mask), optax.sgd(1.0, momentum=c.b1, nesterov=c.nesterov)
    ),
    "adagrad": lambda c, mask: optax.chain(decay(c, mask), optax.adagrad(1.0, eps=c.eps)),
    "rmsprop": lambda c, mask: optax.chain(
        decay(c, mask), optax.rmsprop(1.0, decay=c.b2, eps=c.eps)
    ),
    "adam": lambda c, mask: optax.chain(
        decay(c, mask), optax.adam(1.0, b1=c.b1, b2=c.b2, eps=c.eps)
    ),
    "adamw": lambda c, mask: optax.adamw(
        1.0, b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay, mask=mask
    ),
    "lamb": lambda c, mask: optax.lamb(
        1.0, b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay, mask=mask
    ),
    "lion": lambda c, mask: optax.lion(
        1.0, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay, mask=mask
    ),
    "adafactor": lambda c, mask: optax.adafactor(
        1.0,
        min_dim_size_to_factor=32,
        weight_decay_rate=c.weight_decay or None,
        weight_decay_mask=mask,
    ),
    "muon": lambda c, mask: optax.chain(
        contrib.muon(
            1.0,
            adam_b1=c.b1,
            adam_b2=c.b2,
            # Match the size of an AdamW update, so that one learning rate suits the
            # matrices and what is left to Adam (Liu et al. 2025, 2.2).
            consistent_rms=0.2,
            muon_weight_dimension_numbers=hidden_matrices,
        ),
        # Muon's own decay takes no mask for what is left to Adam.
        optax.add_decayed_weights(-c.weight_decay, mask),
    ),
}
# No descent, but a closed form: for tasks whose gradients are expected counts.
MAXIMIZERS = {"baum_welch": lambda c, mask: baum_welch(c.forgetting, c.smoothing)}

SCHEDULES = (
    "constant",
    "step",
    "exponential",
    "linear",
    "cosine",
    "inverse_sqrt",
    "wsd",
    "plateau",
)
DECAY_MASKS = ("matrices", "hidden", "all")


@dataclass
class OptimConfig:
    name: str = "adamw"
    learning_rate: float = 1e-3  # the peak
    b1: float = 0.9  # first-moment decay; the momentum of "momentum"
    b2: float = 0.95  # second-moment decay
    eps: float = 1e-8
    nesterov: bool = False
    weight_decay: float = 0.1  # L2 for sgd, momentum, adagrad, rmsprop and adam
    decay_mask: str = "matrices"  # matrices (two dims and more) | hidden | all
    schedule: str = "cosine"
    warmup_steps: int = 0  # linear from 0, for every schedule
    decay_steps: int = 0  # where the schedule ends; 0: the steps of the run
    final_fraction: float = 0.1  # of the peak: linear, cosine, wsd, plateau's floor
    decay_every: int = 100  # step and exponential: multiply by decay_rate this often
    decay_rate: float = 0.5  # step, exponential and plateau
    cooldown_fraction: float = 0.2  # wsd: the share of steps that decays
    patience: int = 5  # plateau: windows without gain before the rate falls
    window: int = 50  # plateau: steps whose training loss is averaged
    clip_norm: float = 1.0  # global norm; 0: off
    clip_value: float = 0.0  # each element; 0: off
    clip_adaptive: float = 0.0  # relative to each unit's parameter norm; 0: off
    forgetting: float = 0.0  # baum_welch: 0 (each batch by itself) to 1 (remembers all)
    smoothing: float = 1e-8  # baum_welch: pseudo-counts of each entry, per token

    def validate(self) -> None:
        for field, options in [
            ("name", (*OPTIMIZERS, *MAXIMIZERS)),
            ("schedule", SCHEDULES),
            ("decay_mask", DECAY_MASKS),
        ]:
            if (value := getattr(self, field)) not in options:
                raise ValueError(
                    f"optim.{field} is {value!r}; choose one of {', '.join(options)}"
                )
        for field in (
            "clip_norm", "clip_value", "clip_adaptive", "weight_decay", "smoothing",
        ):  # fmt: skip
            if getattr(self, field) < 0:
                raise ValueError(
                    f"optim.{field} is {getattr(self, field)}; it must not be negative"
                )
        if self.learning_rate <= 0:
            raise ValueError(
                f"optim.learning_rate is {self.learning_rate}; it must be positive"
            )
        if not 0 <= self.forgetting <= 1:
            raise ValueError(
                f"optim.forgetting is {self.forgetting}; expected 0 <= forgetting <= 1"
            )
        for field in ("decay_every", "patience", "window"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"optim.{field} is {getattr(self, field)}; it must be at least 1"
                )


def optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformationExtraArgs:
    """Chain clipping, the optimizer and its schedule for a run of `steps` steps.

    `update` takes the step's mean loss as `value=`, for the plateau schedule.
    """
    c = config
    links = []
    if c.clip_value:
        links.append(optax.clip(c.clip_value))
    if c.clip_adaptive:
        links.append(per_layer(optax.adaptive_grad_clip(c.clip_adaptive)))
    if c.clip_norm:
        links.append(optax.clip_by_global_norm(c.clip_norm))
    links.append(per_layer((OPTIMIZERS | MAXIMIZERS)[c.name](c, decay_mask(c))))
    links.append(
        # Injected, so that the state holds the rate in force and the log can show it.
        optax.inject_hyperparams(optax.scale_by_learning_rate, static_args="flip_sign")(
            learning_rate=schedule(c, steps), flip_sign=False
        )
    )
    if c.schedule == "plateau":
        links.append(
            contrib.reduce_on_plateau(
                factor=c.decay_rate,
                patience=c.patience,
                accumulation_size=c.window,
                min_scale=c.final_fraction,
            )
        )
    return optax.with_extra_args_support(optax.chain(*links))


def per_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Apply `tx` to a stack of scanned layers as if each of them lay apart.

    What looks at a parameter's shape or at a whole parameter (decay masks, trust ratios,
    factors, orthogonalisation, unit-wise norms) then does the same with and without the
    stack.
    """

    def split(tree):
        rest = {name: child for name, child in tree.items() if name != "scanned_layers"}
        return rest, {"layers": tree["scanned_layers"]}

    def init(params):
        if "scanned_layers" not in params:
            return tx.init(params)
        rest, stack = split(params)
        return {"outside_layers": tx.init(rest), "each_layer": jax.vmap(tx.init)(stack)}

    def update(updates, state, params):
        if "scanned_layers" not in params:
            return tx.update(updates, state, params)
        (updates, stack), (params, stacked_params) = split(updates), split(params)
        updates, rest = tx.update(updates, state["outside_layers"], params)
        stack, each = jax.vmap(tx.update)(stack, state["each_layer"], stacked_params)
        state = {"outside_layers": rest, "each_layer": each}
        return updates | {"scanned_layers": stack["layers"]}, state

    return optax.GradientTransformation(init, update)


def learning_rate(state: optax.OptState) -> jax.Array:
    """Read the rate that the last update used, float32[], from an optimizer's state."""

    injected, plateau = (
        optax.InjectStatefulHyperparamsState,
        contrib.ReduceLROnPlateauState,
    )
    rate = jnp.float32(1)
    for node in jax.tree.leaves(
        state, is_leaf=lambda node: isinstance(node, injected | plateau)
    ):
        if isinstance(node, injected):
            rate *= node.hyperparams["learning_rate"]
        elif isinstance(node, plateau):
            rate *= node.scale
    return rate


def schedule(config: OptimConfig, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Return the learning rate as a function of the number of updates done."""
    c = config
    total = max((c.decay_steps or steps) - c.warmup_steps, 1)
    peak, final = c.learning_rate, c.learning_rate * c.final_fraction
    cooldown = max(int(total * c.cooldown_fraction), 1)
    after_warmup = {
        "constant": lambda: optax.constant_schedule(peak),
        "plateau": lambda: optax.constant_schedule(peak),
        "step": lambda: optax.exponential_decay(
            peak, c.decay_every, c.decay_rate, staircase=True
        ),
        "exponential": lambda: optax.exponential_decay(peak, c.decay_every, c.decay_rate),
        "linear": lambda: optax.linear_schedule(peak, final, total),
        "cosine": lambda: optax.cosine_decay_schedule(peak, total, c.final_fraction),
        # Vaswani et al. 2017, 5.3, written so that the peak is at the end of warm-up.
        "inverse_sqrt": lambda: (
            # Joined schedules are also asked about counts before they begin.
            lambda count: (
                peak * (1 + jnp.maximum(count, 0) / max(c.warmup_steps, 1)) ** -0.5
            )
        ),
        # Warmup-stable-decay: Hu et al. 2024, 4.
        "wsd": lambda: optax.join_schedules(
            [
                optax.constant_schedule(peak),
                optax.linear_schedule(peak, final, cooldown),
            ],
            [total - cooldown],
        ),
    }[c.schedule]()
    if not c.warmup_steps:
        return after_warmup
    # From 1/n, not 0: a first step at rate 0 would be a step without effect.
    warmup = optax.linear_schedule(peak / c.warmup_steps, peak, c.warmup_steps - 1)
    return optax.join_schedules([warmup, after_warmup], [c.warmup_steps])


def decay(config: OptimConfig, mask) -> optax.GradientTransformation:
    """L2 regularisation: the decay is part of the gradient that follows it."""
    return optax.add_decayed_weights(config.weight_decay, mask)


def decay_mask(config: OptimConfig):
    """Return params -> bool tree: which parameters decay.

    matrices: two dims and more; hidden: those inside layers (no embedding, no head).
    """
    if config.decay_mask == "all":
        return lambda params: jax.tree.map(lambda _: True, params)
    if config.decay_mask == "matrices":
        return lambda params: jax.tree.map(lambda x: x.ndim >= 2, params)
    return lambda params: jax.tree.map_with_path(is_hidden_matrix, params)


def is_hidden_matrix(path, x: jax.Array) -> bool:
    names = {str(getattr(entry, "key", entry)) for entry in path}
    return x.ndim == 2 and "layers" in names


def hidden_matrices(params):
    """Tell Muon which matrices are its own; the rest is left to its Adam."""
    return jax.tree.map_with_path(
        lambda path, x: (
            contrib.MuonDimensionNumbers() if is_hidden_matrix(path, x) else None
        ),
        params,
    )
