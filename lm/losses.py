"""Cross-entropy from hidden states, in chunks of positions.

With a large vocabulary the logits are the largest array of a language model. Here they
exist for one chunk of positions at a time: in the forward pass, and again in the backward
pass, which computes them anew.

Shapes: B batch, T time, C positions in a chunk, D model width, V vocabulary, K logits of a
teacher at a position, I tokens that it names there.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Teacher(NamedTuple):
    """What a teacher says of the targets: its largest logits, and how they are taken."""

    ids_BTI: jax.Array  # int32, the tokens of the logits; I is K, or 0: the first K tokens
    logits_BTK: jax.Array
    share_B: jax.Array  # of the objective, from 0 to 1; the labels have the rest
    temperature_B: jax.Array


def divergence(
    logits_BCV: jax.Array, ids_BCI: jax.Array, teacher_BCK: jax.Array, temperature_B
) -> jax.Array:
    """Return the teacher's Kullback-Leibler divergence, nats_BC, times temperature^2.

    Both distributions are softmax(logits / temperature), the teacher's over its K tokens
    and the student's over all (Hinton et al. 2015, 2: the square keeps gradients as large).
    """
    heat_B11 = temperature_B[:, None, None]
    teacher_BCK = jax.nn.log_softmax(teacher_BCK / heat_B11)
    student_BCV = jax.nn.log_softmax(logits_BCV / heat_B11)
    if ids_BCI.shape[-1]:
        student_BCK = jnp.take_along_axis(student_BCV, ids_BCI, -1)
    else:
        student_BCK = student_BCV[..., : teacher_BCK.shape[-1]]
    terms_BCK = jnp.exp(teacher_BCK) * (teacher_BCK - student_BCK)
    return heat_B11[..., 0] ** 2 * jnp.sum(terms_BCK, -1)


@jax.custom_vjp
def pick(logits_BCV: jax.Array, labels_BC: jax.Array) -> jax.Array:
    """Return the logits of the labels, logits_BC.

    Its gradient differs from that of autodiff only in speed: a comparison joins the rest of
    the logits' gradient, where a scatter is an array of its own, as large as the logits.
    """
    return jnp.take_along_axis(logits_BCV, labels_BC[..., None], -1)[..., 0]


def pick_forward(logits_BCV: jax.Array, labels_BC: jax.Array):
    return pick(logits_BCV, labels_BC), (labels_BC, jnp.arange(logits_BCV.shape[-1]))


def pick_backward(saved, d_BC: jax.Array):
    labels_BC, tokens_V = saved
    is_label_BCV = labels_BC[..., None] == tokens_V
    return jnp.where(is_label_BCV, d_BC[..., None], 0.0), None


pick.defvjp(pick_forward, pick_backward)


def cross_entropy(
    x_BTD: jax.Array,
    head: Callable[[jax.Array], jax.Array],
    labels_BT: jax.Array,
    mask_BT: jax.Array,
    chunk: int = 0,
    smoothing: float = 0.0,
    weights_BT: jax.Array | None = None,
    teacher: Teacher | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum the negative log likelihood (nats) of the labels that the mask selects.

    `head` maps x_BCD to logits_BCV; `chunk` (0: all) divides T. Returns the sum to be
    minimised and {"loss": the negative log likelihood, "tokens": how many labels count}.
    The two sums are equal without `smoothing`. With it, the first one is against labels of
    which that share is spread over the whole vocabulary (Szegedy et al. 2016, 7). With
    `weights_BT` both are weighted, and the sums of `weight_sums` come with them. With a
    `teacher` the first sum is a mixture with the divergence from its distribution.
    """

    def chunk_sums(x_BCD, labels_BC, mask_BC, weights_BC, said_BCK):
        def total(values_BC: jax.Array) -> jax.Array:
            weighted_BC = values_BC if weights_BC is None else weights_BC * values_BC
            return jnp.sum(jnp.where(mask_BC, weighted_BC, 0.0))

        logits_BCV = head(x_BCD).astype(jnp.float32)
        label_logits_BC = pick(logits_BCV, labels_BC)
        losses_BC = jax.nn.logsumexp(logits_BCV, -1) - label_logits_BC
        loss = total(losses_BC)
        aims_BC = losses_BC
        if smoothing:
            # The label's logit less, the mean logit more, each by the smoothing.
            aims_BC += smoothing * (label_logits_BC - jnp.mean(logits_BCV, -1))
        if teacher:
            share_B1 = teacher.share_B[:, None]
            apart_BC = divergence(logits_BCV, *said_BCK, teacher.temperature_B)
            aims_BC = (1 - share_B1) * aims_BC + share_B1 * apart_BC
        return (loss if aims_BC is losses_BC else total(aims_BC)), loss

    num_positions = labels_BT.shape[1]
    said_BTK = teacher and (teacher.ids_BTI, teacher.logits_BTK)
    if 0 < chunk < num_positions:
        if num_positions % chunk:
            raise ValueError(
                f"loss_chunk {chunk} does not divide the {num_positions} positions"
            )

        def body(total, arrays):
            return jax.tree.map(jnp.add, total, jax.checkpoint(chunk_sums)(*arrays)), None

        split = jax.tree.map(
            lambda a: a.reshape(a.shape[0], -1, chunk, *a.shape[2:]).swapaxes(0, 1),
            (x_BTD, labels_BT, mask_BT, weights_BT, said_BTK),
        )
        zero = jnp.zeros((), jnp.float32)
        (objective, loss_sum), _ = jax.lax.scan(body, (zero, zero), split)
    else:
        objective, loss_sum = chunk_sums(x_BTD, labels_BT, mask_BT, weights_BT, said_BTK)
    tokens = jnp.sum(mask_BT, dtype=jnp.float32)
    sums = {"loss": loss_sum, "tokens": tokens} | weight_sums(mask_BT, weights_BT)
    return objective, sums


def weight_sums(mask_BT: jax.Array, weights_BT: jax.Array | None) -> dict[str, jax.Array]:
    """Return the sums of the weights that count and of their squares; {} without weights.

    A weighted sum is divided by "weight". The noise of its gradient depends on the squares
    (parallel/program.py:noise).
    """
    if weights_BT is None:
        return {}
    weights_BT = jnp.where(mask_BT, weights_BT, 0.0)
    return {"weight": jnp.sum(weights_BT), "weight_squares": jnp.sum(weights_BT**2)}
