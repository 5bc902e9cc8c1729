"""Optimizers, learning-rate schedules and clipping, as one chain of optax transformations.

clip -> optimizer at learning rate 1 -> schedule [-> reduce on plateau]. The update of every
optimizer here is proportional to its learning rate, so the schedule can be a link of its
own.

Weight decay is L2 regularisation for sgd, momentum, adagrad, rmsprop and adam: the decay is
added to the gradient, and the optimizer scales both. For the others the decay is decoupled:
it is added to the update, and follows the schedule (Loshchilov and Hutter 2019). lamb adds
it before its trust ratio, as its paper does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from lm.optimizers import L2, MAXIMIZERS, OPTIMIZERS, Selection, narrow_moments

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
UNSTACKED = "layers"  # the name under which `per_layer` shows one layer of a stack
STACK, MATRICES = "scanned_layers", "whole_matrices"


# Optimizers and schedules, by the fields that have an effect on them.
FIRST_MOMENT = ("momentum", "adam", "adamw", "lamb", "lion", "muon")
SECOND_MOMENT = ("rmsprop", "adam", "adamw", "lamb", "lion", "muon")
WITH_EPS = ("adagrad", "rmsprop", "adam", "adamw", "lamb", "muon")
DECAYED = {"optim.name": tuple(OPTIMIZERS)}
COUNTED = {"optim.name": tuple(MAXIMIZERS)}
FALLING = {"optim.schedule": ("linear", "cosine", "wsd", "plateau")}
ENDING = {"optim.schedule": ("linear", "cosine", "wsd")}
STAIRS = {"optim.schedule": ("step", "exponential")}
PLATEAU = {"optim.schedule": ("plateau",)}
SMALLEST_CHANGE = 2**-8  # of a number in bfloat16, as a share of it
NOT_NEGATIVE = {"at_least": 0}
SHARE = {"at_least": 0, "at_most": 1}
DECAY_RATE = {"at_least": 0, "below": 1}


@dataclass
class OptimConfig:
    # optimizer
    name: str = field(default="adamw", metadata={"choices": (*OPTIMIZERS, *MAXIMIZERS)})
    # highest learning rate, reached at the end of the warm-up
    learning_rate: float = field(default=1e-3, metadata={"above": 0})
    # decay rate of the mean of past gradients, per update; for name=momentum, the momentum
    b1: float = field(
        default=0.9, metadata=DECAY_RATE | {"only": {"optim.name": FIRST_MOMENT}}
    )
    # decay rate of the mean of past squared gradients, per update
    b2: float = field(
        default=0.95, metadata=DECAY_RATE | {"only": {"optim.name": SECOND_MOMENT}}
    )
    # added to the root of the squared gradients, so that nothing is divided by 0
    eps: float = field(
        default=1e-8, metadata={"above": 0, "only": {"optim.name": WITH_EPS}}
    )
    # type in which the optimizer's state is kept between updates
    moments: str = field(
        default="float32",
        metadata={
            "choices": ("float32", "bfloat16"),
            "only": {"optim.name": (*FIRST_MOMENT, "rmsprop")},
        },
    )
    # use Nesterov's momentum
    nesterov: bool = field(default=False, metadata={"only": {"optim.name": ("momentum",)}})
    # weight decay: L2 for sgd, momentum, adagrad, rmsprop and adam, decoupled for others
    weight_decay: float = field(default=0.1, metadata=NOT_NEGATIVE | {"only": DECAYED})
    # which parameters decay; matrices: two or more dims; hidden: matrices inside layers
    decay_mask: str = field(
        default="matrices", metadata={"choices": DECAY_MASKS, "only": DECAYED}
    )
    # how the learning rate changes after the warm-up
    schedule: str = field(default="cosine", metadata={"choices": SCHEDULES})
    # updates in which the learning rate rises linearly to learning_rate; 0: no warm-up
    warmup_steps: int = field(default=0, metadata=NOT_NEGATIVE)
    # update at which the schedule reaches its final rate; 0: the last one of the run
    decay_steps: int = field(default=0, metadata=NOT_NEGATIVE | {"only": ENDING})
    # final learning rate as a share of learning_rate; plateau: the lowest rate
    final_fraction: float = field(default=0.1, metadata=SHARE | {"only": FALLING})
    # updates between two falls by decay_rate; exponential: the fall is spread over them
    decay_every: int = field(default=100, metadata={"at_least": 1, "only": STAIRS})
    # factor of each fall of the learning rate
    decay_rate: float = field(
        default=0.5,
        metadata={
            "above": 0,
            "below": 1,
            "only": {"optim.schedule": ("step", "exponential", "plateau")},
        },
    )
    # share of the updates after the warm-up in which the learning rate falls, at the end
    cooldown_fraction: float = field(
        default=0.2, metadata=SHARE | {"only": {"optim.schedule": ("wsd",)}}
    )
    # number of windows without a lower loss that the learning rate waits before it falls
    patience: int = field(default=5, metadata={"at_least": 1, "only": PLATEAU})
    # steps in a window; the training loss is averaged over them
    window: int = field(default=50, metadata={"at_least": 1, "only": PLATEAU})
    # largest norm of the whole gradient; a longer one is scaled down to it; 0: off
    clip_norm: float = field(default=1.0, metadata=NOT_NEGATIVE)
    # largest magnitude of each element of the gradient; 0: off
    clip_value: float = field(default=0.0, metadata=NOT_NEGATIVE)
    # largest norm of each unit's gradient, as a multiple of its parameters' norm; 0: off
    clip_adaptive: float = field(default=0.0, metadata=NOT_NEGATIVE)
    # update k moves the counts by a share k^-forgetting to those of its batch; 0: all the
    # way; 1: to the mean of all batches
    forgetting: float = field(default=0.0, metadata=SHARE | {"only": COUNTED})
    # added to each expected count, per token of the batch
    smoothing: float = field(default=1e-8, metadata=NOT_NEGATIVE | {"only": COUNTED})

    def validate(self, steps: int) -> None:
        """Raise ValueError for fields that do not fit together."""
        if self.warmup_steps > steps:
            raise ValueError(
                f"optim.warmup_steps {self.warmup_steps} is more than the {steps} steps of "
                "the run; change one of them"
            )
        slowest = max(
            self.b1 if self.name in FIRST_MOMENT else 0.0,
            self.b2 if self.name in SECOND_MOMENT else 0.0,
        )
        if self.moments == "bfloat16" and 1 - slowest < SMALLEST_CHANGE:
            raise ValueError(
                f"optim.moments=bfloat16 keeps 8 bits, and a moment that decays by "
                f"{slowest} an update would never fall; give decay rates of at most "
                f"{1 - SMALLEST_CHANGE}, or moments=float32"
            )


def optimizer(
    config: OptimConfig, steps: int, hidden: tuple[str, ...] = ()
) -> optax.GradientTransformationExtraArgs:
    """Chain clipping, the optimizer and its schedule for a run of `steps` steps.

    `hidden` is Task.hidden. The transformation's `update` takes the mean loss of the step
    as `value=`, which the plateau schedule reads. Raises ValueError if the config asks for
    hidden matrices and the Task has none.
    """
    if needs_hidden(config) and not hidden:
        given = "name=muon" if config.name == "muon" else "decay_mask=hidden"
        raise ValueError(
            f"optim.{given} acts on the matrices inside a network's layers, but this model "
            "has none; choose another"
        )
    c = config
    links = []
    if c.clip_value:
        links.append(optax.clip(c.clip_value))
    if c.clip_adaptive:
        links.append(per_layer(optax.adaptive_grad_clip(c.clip_adaptive)))
    if c.clip_norm:
        links.append(optax.clip_by_global_norm(c.clip_norm))
    decays = decay_mask(c, hidden)
    if c.name in L2:
        links.append(per_layer(optax.add_decayed_weights(c.weight_decay, decays)))
    update = (OPTIMIZERS | MAXIMIZERS)[c.name](c, decays, hidden_matrices(hidden))
    if c.moments == "bfloat16":
        update = narrow_moments(update)
    links.append(per_layer(update))
    links.append(
        # inject_hyperparams keeps the current rate in the state, where the log reads it.
        optax.inject_hyperparams(optax.scale_by_learning_rate, static_args="flip_sign")(
            learning_rate=schedule(c, steps), flip_sign=False
        )
    )
    if c.schedule == "plateau":
        links.append(
            contrib.reduce_on_plateau(
                factor=c.decay_rate,
                # Optax lowers the rate in the window number `patience` without a gain.
                # PyTorch, whose meaning of patience we take, does so one window later.
                patience=c.patience + 1,
                accumulation_size=c.window,
                min_scale=c.final_fraction,
            )
        )
    return optax.with_extra_args_support(optax.chain(*links))


def per_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Apply `tx` to each layer of a stack of scanned layers by itself.

    Some transformations look at the shape of a parameter or at the whole of it: decay
    masks, trust ratios, factors, orthogonalisation, unit-wise norms. With `per_layer` they
    do the same to a layer in a stack as to a layer by itself, and to a matrix in an array
    of many (parallel/forms/dealing.py).
    """

    def split(tree) -> tuple[dict, dict]:
        """Return what is outside of stacks, and each stack as `tx` sees it."""
        rest = {name: x for name, x in tree.items() if name not in (STACK, MATRICES)}
        stacks = {"each_layer": tree[STACK]} if STACK in tree else {}
        stacks |= tree.get(MATRICES, {})
        return rest, {name: {UNSTACKED: stack} for name, stack in stacks.items()}

    def join(rest: dict, stacks: dict) -> dict:
        stacks = {name: stack[UNSTACKED] for name, stack in stacks.items()}
        if "each_layer" in stacks:
            rest |= {STACK: stacks.pop("each_layer")}
        return rest | ({MATRICES: stacks} if stacks else {})

    def init(params):
        rest, stacks = split(params)
        if not stacks:
            return tx.init(params)
        each = {name: jax.vmap(tx.init)(stack) for name, stack in stacks.items()}
        return {"outside_layers": tx.init(rest)} | each

    def update(updates, state, params):
        (rest, stacks), (outer, stacked) = split(updates), split(params)
        if not stacks:
            return tx.update(updates, state, params)
        rest, outside = tx.update(rest, state["outside_layers"], outer)
        state = {"outside_layers": outside} | {name: state[name] for name in stacks}
        for name in stacks:
            stacks[name], state[name] = jax.vmap(tx.update)(
                stacks[name], state[name], stacked[name]
            )
        return join(rest, stacks), state

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
    """Return the learning rate as a function of the number of updates done.

    Let updates be numbered from 1 to n. Update t of the warm-up has the rate
    peak x t / warmup_steps, so the last update of the warm-up has the peak. Without a
    warm-up, the first update of the run has the peak. Then the rate follows the schedule:
    linear, cosine and wsd give update n the final rate.
    """
    c = config
    peak, final = c.learning_rate, c.learning_rate * c.final_fraction
    peak_at = max(c.warmup_steps, 1)
    span = max((c.decay_steps or steps) - peak_at, 1)  # updates from the peak to the end
    cooldown = max(round(span * c.cooldown_fraction), 1)
    after_peak = {
        "constant": lambda: optax.constant_schedule(peak),
        "plateau": lambda: optax.constant_schedule(peak),
        "step": lambda: optax.exponential_decay(
            peak, c.decay_every, c.decay_rate, staircase=True
        ),
        "exponential": lambda: optax.exponential_decay(peak, c.decay_every, c.decay_rate),
        "linear": lambda: optax.linear_schedule(peak, final, span),
        "cosine": lambda: optax.cosine_decay_schedule(peak, span, c.final_fraction),
        # Vaswani et al. 2017, 5.3, with the peak in place of their constant.
        "inverse_sqrt": lambda: (
            # join_schedules also calls this with counts below 0, before it begins.
            lambda count: peak * (1 + jnp.maximum(count, 0) / peak_at) ** -0.5
        ),
        # Warmup-stable-decay: Hu et al. 2024, 4.
        "wsd": lambda: optax.join_schedules(
            [
                optax.constant_schedule(peak),
                optax.linear_schedule(peak, final, cooldown),
            ],
            [span - cooldown],
        ),
    }[c.schedule]()
    if peak_at == 1:
        return after_peak
    # The warm-up starts at peak / warmup_steps: a step at rate 0 would have no effect.
    warmup = optax.linear_schedule(peak / peak_at, peak, peak_at - 1)
    return optax.join_schedules([warmup, after_peak], [peak_at - 1])


def needs_hidden(config: OptimConfig) -> bool:
    return config.name == "muon" or config.decay_mask == "hidden"


def hidden_matrices(names: tuple[str, ...]) -> Selection:
    """Select the matrices under these names of a Task, and in one layer of a stack."""

    def is_hidden(path, x: jax.Array) -> bool:
        return x.ndim == 2 and path[0].key in (*names, UNSTACKED)

    return lambda params: jax.tree.map_with_path(is_hidden, params)


def decay_mask(config: OptimConfig, hidden: tuple[str, ...] = ()) -> Selection:
    """Select the parameters that decay.

    matrices: all with two or more dims; hidden: the matrices inside layers, but not the
    embeddings and the head.
    """
    return {
        "all": lambda params: jax.tree.map(lambda _: True, params),
        "matrices": lambda params: jax.tree.map(lambda x: x.ndim >= 2, params),
        "hidden": hidden_matrices(hidden),
    }[config.decay_mask]
