"""Hidden Markov language model, trained by Baum-Welch or by gradient.

The idea: differentiate the log likelihood with respect to the log-probabilities, as if they
were free. The gradient is then the expected count of each start, transition and emission,
and the backward pass of the forward algorithm is the backward algorithm (Eisner 2016). So
the E-step of Baum-Welch is a gradient, which any strategy can sum, and the M-step is an
optimizer (lm/baum_welch.py). If the normalisation is differentiated too, any other
optimizer can train the same loss.

The chain starts again at the beginning of each segment. Training maximises the likelihood
of all tokens. The loss that is reported is that of the targets, each given the tokens
before it in its segment, as for every other model. Weights that are equal inside a segment
give weighted counts. Others do not: the gradient is then no count, and the M-step takes
what is negative in it as 0.

The forward algorithm is a scan over time. A step costs S^2 for each row; an associative
scan would multiply matrices, at S^3. Source: Rabiner 1989.

Shapes: B batch, T time, S states, V vocabulary, C cache length.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp

from lm.losses import weight_sums
from lm.models.setting import Setting
from lm.task import Batch, Key, Params, Sums, Task, targets_mask

TRAINING = ("em", "gradient")


@dataclass
class HmmConfig:
    # S, hidden states
    num_states: int = field(default=128, metadata={"at_least": 1})
    # em: expectation maximisation, with optim.name=baum_welch; gradient: descent
    training: str = field(default="em", metadata={"choices": TRAINING})

    reads: ClassVar[str] = "documents"
    traces: ClassVar[bool] = False
    augments: ClassVar[bool] = False

    @property
    def trained_by(self) -> str:
        return "expectation" if self.training == "em" else "gradient"

    def validate(self, setting: Setting) -> None:
        """Accept every setting: no fields depend on each other."""

    def task(self, setting: Setting) -> Task:
        return hmm_task(self, setting.vocab_size)

    def describe(self) -> str:
        how = {"em": "Baum-Welch", "gradient": "by gradient"}[self.training]
        return f"hidden Markov, {self.num_states} states, {how}"


def hmm_task(config: HmmConfig, vocab_size: int) -> Task:
    """Return the Task of a hidden Markov model; rows may have any length."""
    num_states = config.num_states

    def init(key: Key) -> Params:
        shapes = {
            "start": (num_states,),
            "transition": (num_states, num_states),
            "emission": (num_states, vocab_size),
        }
        keys = jax.random.split(key, len(shapes))
        return normalised(
            {
                name: jax.random.normal(k, shape)
                for k, (name, shape) in zip(keys, shapes.items(), strict=True)
            }
        )

    def loss(params: Params, batch: Batch, key: Key | None) -> tuple[jax.Array, Sums]:
        logs = normalised(params, as_constant=config.training == "em")
        _, logp_BT = forward(logs, batch["tokens"], *boundaries(batch))
        targets, weights_BT = targets_mask(batch), batch.get("weights")
        if weights_BT is not None:
            logp_BT, weights_BT = logp_BT * weights_BT, weights_BT[:, 1:]
        sums = {
            "loss": -jnp.sum(jnp.where(targets, logp_BT[:, 1:], 0.0)),
            "tokens": jnp.sum(targets, dtype=jnp.float32),
        }
        return -jnp.sum(logp_BT), sums | weight_sums(targets, weights_BT)

    def logits(params: Params, batch: Batch) -> jax.Array:
        logs = normalised(params)
        starts_BT, padding_BT = (x[:, :-1] for x in boundaries(batch))
        filter_BTS, _ = forward(logs, batch["tokens"][:, :-1], starts_BT, padding_BT)
        return predict(logs, filter_BTS)

    def cache(batch_size: int, length: int) -> jax.Array:
        """Return an array for log p(state | tokens before it) at every position."""
        return jnp.zeros((batch_size, length + 1, num_states))

    def decode(params: Params, filter_BCS: jax.Array, tokens_BT, start_B):
        logs = normalised(params)
        rows_B, positions_T = jnp.arange(len(start_B)), jnp.arange(tokens_BT.shape[1])
        starts_BT = start_B[:, None] + positions_T == 0
        before_BS = filter_BCS[rows_B, start_B]
        filter_BTS, _ = forward(
            logs, tokens_BT, starts_BT, jnp.zeros_like(starts_BT), before_BS
        )
        places_BT = start_B[:, None] + positions_T + 1
        filter_BCS = filter_BCS.at[rows_B[:, None], places_BT].set(
            filter_BTS.astype(filter_BCS.dtype)
        )
        return predict(logs, filter_BTS), filter_BCS

    return Task(init, loss, logits, cache, decode)


def normalised(params: Params, as_constant: bool = False) -> Params:
    """Return log-probabilities, float32, with each distribution along the last dim.

    With `as_constant` the gradient ignores the normaliser, so that it is a count.
    """

    def one(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        normaliser = jax.nn.logsumexp(x, -1, keepdims=True)
        return x - (jax.lax.stop_gradient(normaliser) if as_constant else normaliser)

    return jax.tree.map(one, params)


def boundaries(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return starts_BT, true where a segment begins, and padding_BT."""
    segments_BT = batch["segments"]
    changes_BT = segments_BT[:, 1:] != segments_BT[:, :-1]
    starts_BT = jnp.pad(changes_BT, ((0, 0), (1, 0)), constant_values=True)
    return starts_BT, segments_BT == 0


def forward(
    logs: Params,
    tokens_BT: jax.Array,
    starts_BT: jax.Array,
    padding_BT: jax.Array,
    before_BS: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Run the forward algorithm over each row.

    Returns filter_BTS, the log p(state | tokens of the segment so far), and logp_BT, the
    log p(token | tokens before it in its segment), which is 0 at padding. `before_BS` is
    the filter before the first position, for rows that continue a text.
    """
    transition_SS = jnp.exp(logs["transition"])
    start_S = jnp.exp(logs["start"])
    emission_BTS = logs["emission"].T[tokens_BT]
    if before_BS is None:
        before_BS = jnp.full_like(emission_BTS[:, 0], -jnp.log(len(start_S)))

    def step(filter_BS, now):
        emission_BS, starts_B, padding_B = now
        # Probabilities, not logs: they sum to 1, so an underflow loses 1e-38 of the sum.
        moved_BS = jnp.where(starts_B[:, None], start_S, jnp.exp(filter_BS) @ transition_SS)
        joint_BS = safe_log(moved_BS) + emission_BS
        logp_B = jax.nn.logsumexp(joint_BS, -1)
        filter_BS = jnp.where(padding_B[:, None], filter_BS, joint_BS - logp_B[:, None])
        return filter_BS, (filter_BS, jnp.where(padding_B, 0.0, logp_B))

    by_time = (emission_BTS.swapaxes(0, 1), starts_BT.T, padding_BT.T)
    _, (filter_TBS, logp_TB) = jax.lax.scan(step, before_BS, by_time)
    return filter_TBS.swapaxes(0, 1), logp_TB.T


def safe_log(x: jax.Array) -> jax.Array:
    return jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny))


def predict(logs: Params, filter_BTS: jax.Array) -> jax.Array:
    """Return logits_BTV, the log-probabilities of the token after each position."""
    next_BTS = jnp.exp(filter_BTS) @ jnp.exp(logs["transition"])
    return safe_log(next_BTS @ jnp.exp(logs["emission"]))


def viterbi(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return the likeliest states, int32_BT (-1: padding), and their log-probability_B.

    It is the probability of states and tokens together, over all segments of a row.
    """
    logs = normalised(params)
    emission_BTS = logs["emission"].T[batch["tokens"]]
    starts_BT, padding_BT = boundaries(batch)
    num_states = len(logs["start"])

    def step(best_BS, now):
        emission_BS, starts_B, padding_B = (x[:, None] for x in now)
        # A segment begins after the best last state of the segment before it.
        moves_BSS = jnp.where(
            starts_B[..., None], logs["start"], logs["transition"]
        ) + jnp.expand_dims(best_BS, -1)
        new_BS = jnp.max(moves_BSS, 1) + emission_BS[:, 0]
        came_from_BS = jnp.where(
            padding_B, jnp.arange(num_states), jnp.argmax(moves_BSS, 1)
        )
        return jnp.where(padding_B, best_BS, new_BS), came_from_BS

    def back(state_B, came_from_BS):
        before_B = jnp.take_along_axis(came_from_BS, state_B[:, None], 1)[:, 0]
        return before_B, state_B

    by_time = (emission_BTS.swapaxes(0, 1), starts_BT.T, padding_BT.T)
    # Nothing comes before the first position. One state with probability 1 stands for it.
    before_BS = jnp.where(jnp.arange(num_states) == 0, 0.0, -jnp.inf)
    before_BS = jnp.broadcast_to(before_BS, emission_BTS[:, 0].shape)
    best_BS, came_from_TBS = jax.lax.scan(step, before_BS, by_time)
    last_B = jnp.argmax(best_BS, -1)
    _, states_TB = jax.lax.scan(back, last_B, came_from_TBS, reverse=True)
    return jnp.where(padding_BT, -1, states_TB.T), jnp.max(best_BS, -1)


def sample_rows(
    params: Params, key: Key, num_rows: int, length: int
) -> tuple[jax.Array, jax.Array]:
    """Draw states and tokens from the start of the chain, each int32[num_rows, length]."""
    logs = normalised(params)

    def step(state_B, key):
        here, there = jax.random.split(key)
        token_B = jax.random.categorical(here, logs["emission"][state_B])
        return jax.random.categorical(there, logs["transition"][state_B]), (
            state_B,
            token_B,
        )

    first, rest = jax.random.split(key)
    state_B = jax.random.categorical(first, logs["start"], shape=(num_rows,))
    _, drawn_TB = jax.lax.scan(step, state_B, jax.random.split(rest, length))
    states_BT, tokens_BT = jax.tree.map(jnp.transpose, drawn_TB)
    return states_BT, tokens_BT
