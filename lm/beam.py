"""Beam search: the likeliest text that a search of bounded width finds.

The search keeps the K texts with the best scores. Some of them have ended, others go on.
The score of a text is its log likelihood, divided by ((5 + length) / 6) ** length_penalty
(Wu et al. 2016, 7); the end mark counts as a token. A row is done when no text that goes on
can reach a better score than the best text that has ended. If no text ends in the tokens
that are allowed, the best one is taken as it is. A beam of 1 is greedy decoding.

Shapes: B batch, N new tokens, V vocabulary, K beams.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.task import Task
from lm.vocabulary import END_ID

MOST_PENALTY = 8  # beyond it, float32 does not hold the penalty of 400,000 tokens


@dataclass(frozen=True)
class Beam:
    size: int = 4  # K
    length_penalty: float = 0.6  # 0: none; more favours longer texts

    def validate(self) -> None:
        if self.size < 1:
            raise ValueError(f"the beam's size is {self.size}; expected at least 1")
        if not 0 <= self.length_penalty <= MOST_PENALTY:
            raise ValueError(
                f"length_penalty is {self.length_penalty}; expected 0 to {MOST_PENALTY}"
            )


class Search(NamedTuple):
    """The state of the search after some steps; the best text of a row comes first."""

    cache: Any  # has B x K rows
    logits_BKV: jax.Array
    log_p_BK: jax.Array
    tokens_BKN: jax.Array
    length_BK: jax.Array
    ended_BK: jax.Array


def beam_rows(
    task: Task, num_new: int, beam: Beam, params, cache, logits_BV, lengths_B, key
) -> jax.Array:
    """Return tokens_BN of the best text of each row; after its end come more end marks.

    `key` is not used, because nothing is drawn; `sample_rows` has the same signature.
    """
    num_rows, num_beams = len(logits_BV), beam.size

    def body(carry):
        step, search = carry
        search, parent_BK = extend(beam, search, step)
        rows = (jnp.arange(num_rows)[:, None] * num_beams + parent_BK).ravel()
        cache = jax.tree.map(lambda x: x[rows], search.cache)
        token = search.tokens_BKN[:, :, step].reshape(-1, 1)
        position = jnp.repeat(lengths_B, num_beams) + step
        logits, cache = task.decode(params, cache, token, position)
        logits_BKV = logits.reshape(num_rows, num_beams, -1)
        return step + 1, search._replace(logits_BKV=logits_BKV, cache=cache)

    def unfinished(carry):
        step, search = carry
        now_BK = search.log_p_BK / penalty(beam, search.length_BK)
        hoped_BK = search.log_p_BK / penalty(beam, num_new)
        ended_B = jnp.max(jnp.where(search.ended_BK, now_BK, -jnp.inf), 1)
        hoped_B = jnp.max(jnp.where(search.ended_BK, -jnp.inf, hoped_BK), 1)
        return (step < num_new) & jnp.any(hoped_B > ended_B)

    start = Search(
        cache=jax.tree.map(lambda x: jnp.repeat(x, num_beams, axis=0), cache),
        logits_BKV=jnp.repeat(logits_BV[:, None], num_beams, axis=1),
        # All beams begin as the same text. Only one of them may go on, or all K beams
        # would find the same texts.
        log_p_BK=jnp.full((num_rows, num_beams), -jnp.inf).at[:, 0].set(0.0),
        tokens_BKN=jnp.full((num_rows, num_beams, num_new), END_ID, jnp.int32),
        length_BK=jnp.zeros((num_rows, num_beams), jnp.int32),
        ended_BK=jnp.zeros((num_rows, num_beams), bool),
    )
    _, search = jax.lax.while_loop(unfinished, body, (0, start))
    # Take the first text that has ended, or else the first of all. Where a row has fewer
    # than K texts, a beam with log likelihood -inf fills the place; it holds no text.
    best_B = jnp.argmax(search.ended_BK & (search.log_p_BK > -jnp.inf), 1)
    return search.tokens_BKN[jnp.arange(num_rows), best_B]


def penalty(beam: Beam, length) -> jax.Array:
    return ((5.0 + length) / 6.0) ** beam.length_penalty


def extend(beam: Beam, search: Search, step) -> tuple[Search, jax.Array]:
    """Give each text one more token; return also parent_BK, the beam that it continues."""
    num_rows, num_beams, vocab_size = search.logits_BKV.shape
    ended_BK1 = search.ended_BK[:, :, None]
    # A text that has ended can only take another end mark, at no cost.
    stays_V = jnp.where(jnp.arange(vocab_size) == END_ID, 0.0, -jnp.inf)
    log_p_BKV = jax.nn.log_softmax(search.logits_BKV.astype(jnp.float32))
    log_p_BKV = search.log_p_BK[:, :, None] + jnp.where(ended_BK1, stays_V, log_p_BKV)
    length_BK = jnp.where(search.ended_BK, search.length_BK, step + 1)
    ranked_BKV = log_p_BKV / penalty(beam, length_BK)[:, :, None]
    _, index_BK = jax.lax.top_k(ranked_BKV.reshape(num_rows, -1), num_beams)
    parent_BK, token_BK = index_BK // vocab_size, index_BK % vocab_size
    tokens_BKN = jnp.take_along_axis(search.tokens_BKN, parent_BK[:, :, None], 1)
    search = search._replace(
        log_p_BK=jnp.take_along_axis(log_p_BKV.reshape(num_rows, -1), index_BK, 1),
        tokens_BKN=tokens_BKN.at[:, :, step].set(token_BK),
        length_BK=jnp.take_along_axis(length_BK, parent_BK, 1),
        ended_BK=token_BK == END_ID,
    )
    return search, parent_BK
