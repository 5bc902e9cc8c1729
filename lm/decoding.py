"""Decoding with a key/value cache: greedy, temperature, top-k, top-p.

All rows advance together, each at its own position; the prompt is taken in one pass, and
each new token costs one. A row's randomness depends on its index alone, so the same prompt
gives the same text in any batch.

Shapes: B batch, P longest prompt, N new tokens, V vocabulary.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.tokenizer import END_ID
from lm.task import Params, Task


@dataclass
class Sampling:
    temperature: float = 0.8  # 0: greedy
    top_k: int = 0  # keep the k likeliest; 0: all
    top_p: float = 1.0  # keep the likeliest that hold this share (Holtzman et al. 2020)

    def validate(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; expected >= 0")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected >= 0 (0: all tokens)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected 0 < p <= 1")


def sample(logits_V: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """Draw one token, int32[]."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_V).astype(jnp.int32)
    logits_V = logits_V.astype(jnp.float32) / sampling.temperature
    order_V = jnp.argsort(-logits_V)
    ranked_V = logits_V[order_V]
    kept_V = jnp.ones(ranked_V.shape, bool)
    if sampling.top_k:
        kept_V &= jnp.arange(ranked_V.size) < sampling.top_k
    if sampling.top_p < 1:
        share_V = jax.nn.softmax(jnp.where(kept_V, ranked_V, -jnp.inf))
        # What lies before a token decides, so the likeliest is always kept.
        kept_V &= jnp.cumsum(share_V) - share_V < sampling.top_p
    rank = jax.random.categorical(key, jnp.where(kept_V, ranked_V, -jnp.inf))
    return order_V[rank].astype(jnp.int32)


def generate(
    task: Task,
    params: Params,
    prompts: list[list[int]],
    num_new: int,
    sampling: Sampling,
    seed: int,
) -> list[list[int]]:
    """Continue each prompt by up to `num_new` tokens, ending at the end-of-text mark.

    Raises ValueError where there is no prompt, or one without a token, or nothing to add.
    """
    if not prompts or not all(prompts):
        empty = [index for index, prompt in enumerate(prompts) if not prompt]
        raise ValueError(
            f"of {len(prompts)} prompts those numbered {empty} have no token; give each at "
            "least one (the end-of-text mark begins a text)"
        )
    if num_new < 1:
        raise ValueError(f"num_new is {num_new}; it must be at least 1")
    lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
    prompts_BP = np.zeros((len(prompts), lengths_B.max()), np.int32)
    for row, prompt in enumerate(prompts):
        prompts_BP[row, : len(prompt)] = prompt
    decode = jax.jit(partial(decode_rows, task, num_new, sampling))
    new_BN = np.asarray(decode(params, prompts_BP, lengths_B, jax.random.key(seed)))
    texts = []
    for row in new_BN.tolist():
        texts.append(row[: row.index(END_ID)] if END_ID in row else row)
    return texts


def decode_rows(
    task: Task, num_new: int, sampling: Sampling, params, prompts_BP, lengths_B, key
) -> jax.Array:
    """Return tokens_BN; after a row's end-of-text mark come more of them."""
    num_rows, longest = prompts_BP.shape
    cache = task.cache(num_rows, longest + num_new)
    zeros_B = jnp.zeros(num_rows, jnp.int32)
    logits_BPV, cache = task.decode(params, cache, prompts_BP, zeros_B)
    logits_BV = logits_BPV[jnp.arange(num_rows), lengths_B - 1]
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_rows))

    def draw(logits_BV, step, ended_B):
        step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)
        draw_row = partial(sample, sampling=sampling)
        return jnp.where(ended_B, END_ID, jax.vmap(draw_row)(logits_BV, step_keys_B))

    def body(carry, step):
        cache, token_B, ended_B = carry
        logits_B1V, cache = task.decode(params, cache, token_B[:, None], lengths_B + step)
        token_B = draw(logits_B1V[:, 0], step + 1, ended_B)
        return (cache, token_B, ended_B | (token_B == END_ID)), token_B

    first_B = draw(logits_BV, 0, zeros_B > 0)
    carry = (cache, first_B, first_B == END_ID)
    _, rest_NB = jax.lax.scan(body, carry, jnp.arange(num_new - 1))
    return jnp.concatenate([first_B[None], rest_NB]).T
