"""Recurrent language models: plain RNN, LSTM and GRU, made of Flax's cells.

Sources: Elman 1990 (RNN); Hochreiter and Schmidhuber 1997, Gers et al. 2000 (LSTM); Cho et
al. 2014 (GRU).

One matrix product takes in the inputs of all time steps, before the scan over time. Only
the product with the state is left for the scan.

The state is zeroed at the beginning of each row and of each document. With `truncate`, the
gradient stops every so many steps while the state goes on (Williams and Peng 1990). So a
long document that is to be read in windows, with the state carried along, must lie in one
long row. Rows of successive batches do not continue each other, because rows are shuffled:
that lets a run be resumed, and spread over any number of devices.

Shapes: B batch, T time, S cache length, D width of embeddings and states, G gates x D,
V vocabulary. A carry is a pytree of states [B, D]: (c, h) for the LSTM, h for the other
cells.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lm.models.layers import (
    ACTIVATIONS,
    INITIALIZERS,
    dropout,
    lookup,
    matmul,
    vocabulary_logits,
)
from lm.models.recurrence import Carry, gru_step, lstm_step, output, recur, rnn_step
from lm.models.rotary import positions_in_segment
from lm.models.setting import Setting, check_chunk
from lm.task import (
    Key,
    Stages,
    Task,
    cut_graphs,
    inputs,
    layered_stages,
    next_token_loss,
    next_token_task,
    row_keys,
)

CELLS = {"rnn": nnx.SimpleCell, "lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}
STEPS = {"rnn": rnn_step, "lstm": lstm_step, "gru": gru_step}
NUM_GATES = {"rnn": 1, "lstm": 4, "gru": 3}


@dataclass
class RecurrentConfig:
    # kind of recurrent cell
    cell: str = field(default="lstm", metadata={"choices": tuple(CELLS)})
    # D, elements in an embedding and in a state
    width: int = field(default=256, metadata={"at_least": 1})
    # number of layers; each reads the states of the layer below
    num_layers: int = field(default=2, metadata={"at_least": 1, "at_most": 10_000})
    # activation function of the plain RNN
    activation: str = field(
        default="tanh",
        metadata={"choices": tuple(ACTIVATIONS), "only": {"model.cell": ("rnn",)}},
    )
    # initialiser of each gate's matrices
    init: str = field(default="orthogonal", metadata={"choices": tuple(INITIALIZERS)})
    # tokens that a gradient goes back at most; must divide seq_len; 0: no limit
    truncate: int = field(default=0, metadata={"at_least": 0})
    # file of word vectors, in word2vec's text format, that rows of the embedding begin
    # with; its content may not change, its place may; "": none
    embeddings: str = field(default="", metadata={"decides": False})
    # use the embedding, transposed, as the head
    tied: bool = True
    # share of elements that dropout zeroes between layers, not between time steps
    dropout: float = field(default=0.0, metadata={"at_least": 0, "below": 1})
    # positions of a row whose logits exist at once, which saves memory; 0: all
    loss_chunk: int = field(default=0, metadata={"at_least": 0, "decides": False})

    reads: ClassVar[str] = "documents"
    trained_by: ClassVar[str] = "gradient"
    traces: ClassVar[bool] = True
    augments: ClassVar[bool] = True

    def validate(self, setting: Setting) -> None:
        """Raise ValueError for fields that do not fit together, or not the setting."""
        check_chunk("model.truncate", self.truncate, setting)
        check_chunk("model.loss_chunk", self.loss_chunk, setting)

    def task(self, setting: Setting) -> Task:
        @jax.jit
        def build(key: Key) -> Recurrent:
            return Recurrent(self, setting.vocab_size, nnx.Rngs(key))

        traced = setting.trace_norms
        task = next_token_task(build, self.loss_chunk, trace_norms=traced)
        stages = recurrent_stages(self, build, traced)
        return task._replace(stages=stages, hidden=("layers",))

    def describe(self) -> str:
        return f"{self.cell.upper()}, {self.num_layers} layers of {self.width}"


def recurrent_stages(
    config: RecurrentConfig,
    build: Callable[[Key], "Recurrent"],
    trace_norms: bool = False,
) -> Stages:
    """Cut between layers; all have one shape, as a state is as wide as an embedding."""
    outer_graph, layer_graph = cut_graphs(build)

    def embed(outer, batch, key) -> jax.Array:
        tokens_BT, _ = inputs(batch)
        return nnx.merge(outer_graph, outer).enter(tokens_BT, row_keys(batch, key))

    def layer(params, x_BTD, batch, index, key) -> tuple[jax.Array, jax.Array]:
        first_BT = document_starts(*inputs(batch))
        x_BTD = run_layer(x_BTD, nnx.merge(layer_graph, params), first_BT)
        return x_BTD, dropout(x_BTD, config.dropout, row_keys(batch, key), index + 1)

    def loss(outer, x_BTD, batch):
        head = nnx.merge(outer_graph, outer).head
        return next_token_loss(x_BTD, head, batch, config.loss_chunk)

    return layered_stages(config.num_layers, embed, layer, loss, trace_norms)


def each_gate(init: Callable, num_gates: int) -> Callable:
    """Return an initialiser of [D, gates x D] that initialises each gate by itself."""

    def gates(key: jax.Array, shape: tuple[int, int], dtype, *_) -> jax.Array:
        one = shape[0], shape[1] // num_gates
        keys = jax.random.split(key, num_gates)
        return jnp.concatenate([init(key, one, dtype) for key in keys], axis=1)

    return gates


def open_forget_gate(key: jax.Array, shape: tuple[int], dtype, *_) -> jax.Array:
    """Start the LSTM's forget gate at a bias of 1 (Jozefowicz et al. 2015)."""
    return jnp.zeros(shape, dtype).reshape(NUM_GATES["lstm"], -1).at[1].set(1).ravel()


def make_cell(config: RecurrentConfig, rngs: nnx.Rngs) -> nnx.Module:
    init = each_gate(INITIALIZERS[config.init], NUM_GATES[config.cell])
    bias = open_forget_gate if config.cell == "lstm" else nnx.initializers.zeros
    return CELLS[config.cell](
        config.width,
        config.width,
        kernel_init=init,
        recurrent_kernel_init=init,
        bias_init=bias,
        rngs=rngs,
    )


class Layer(nnx.Module):
    """A cell of Flax that runs over time, with one product for the inputs of all steps."""

    def __init__(self, config: RecurrentConfig, rngs: nnx.Rngs):
        self.width, self.truncate = config.width, config.truncate
        self.num_states = 2 if config.cell == "lstm" else 1
        self.step = STEPS[config.cell]
        if config.cell == "rnn":
            self.step = partial(rnn_step, ACTIVATIONS[config.activation])
        cell = make_cell(config, rngs)
        self.input, self.cell = cell.dense_i, cell
        del cell.dense_i

    def zeros(self, shape: tuple[int, ...], dtype=jnp.float32) -> Carry:
        zeros = jnp.zeros((*shape, self.width), dtype)
        return (zeros, zeros) if self.num_states == 2 else zeros

    def states(self, x_BTD: jax.Array, carry: Carry, first_BT: jax.Array | None) -> Carry:
        """Return the carries after every step, a pytree of [B, T, D].

        The carry is zeroed before the steps that `first_BT` marks.
        """
        project = self.input
        inputs_TBG = matmul(x_BTD, project.kernel[...]).swapaxes(0, 1)
        if project.bias is not None:
            inputs_TBG += project.bias[...]
        cut_T = None
        if self.truncate:
            cut_T = jnp.arange(x_BTD.shape[1]) % self.truncate == 0
        first_TB1 = None if first_BT is None else first_BT.T[:, :, None]
        weights = self.cell.dense_h
        bias_G = None if weights.bias is None else weights.bias[...]
        arrays = weights.kernel[...], bias_G, carry, inputs_TBG, cut_T, first_TB1
        carries = recur(self.step, *arrays)
        return jax.tree.map(lambda x: x.swapaxes(0, 1), carries)

    def decode(self, x_BTD: jax.Array, past: Carry, start_B: jax.Array):
        """Return the outputs y_BTD, and `past` with the new states after start_B.

        `past`, [B, 1 + S, D], holds the state before each position. Each row goes on from
        the state at its own position, so the padding of a shorter prompt does no harm.
        """
        rows_B = jnp.arange(len(x_BTD))
        after_BT = start_B[:, None] + 1 + jnp.arange(x_BTD.shape[1])
        carry = jax.tree.map(lambda x: x[rows_B, start_B], past)
        carries = self.states(x_BTD, carry, None)
        past = jax.tree.map(
            lambda old, new: old.at[rows_B[:, None], after_BT].set(new), past, carries
        )
        return output(carries), past


def document_starts(tokens_BT, segments_BT) -> jax.Array:
    """Return bool_BT, true where another document begins."""
    return positions_in_segment(tokens_BT, segments_BT) == 0


def run_layer(x_BTD: jax.Array, layer: Layer, first_BT: jax.Array) -> jax.Array:
    """Run a layer over rows whose states begin at zero."""
    carry = layer.zeros(x_BTD.shape[:1], x_BTD.dtype)
    return output(layer.states(x_BTD, carry, first_BT))


def embedding_scale(width: int) -> float:
    """Return the factor of embeddings that enter a layer (Vaswani et al. 2017, 3.4).

    The table has the variance 1 / width, which suits a tied head. As inputs its rows would
    be too small: the gates would stay half open.
    """
    return width**0.5


class Recurrent(nnx.Module):
    def __init__(self, config: RecurrentConfig, vocab_size: int, rngs: nnx.Rngs):
        c = config
        self.config = c
        table_init = nnx.initializers.normal(c.width**-0.5)
        self.embedding = nnx.Param(table_init(rngs.params(), (vocab_size, c.width)))
        self.layers = nnx.List([Layer(c, rngs) for _ in range(c.num_layers)])
        self.output = (
            None
            if c.tied
            else nnx.Linear(
                c.width, vocab_size, use_bias=False, kernel_init=table_init, rngs=rngs
            )
        )

    def embed(self, tokens_BT: jax.Array) -> jax.Array:
        return lookup(self.embedding, tokens_BT) * embedding_scale(self.config.width)

    def enter(self, tokens_BT: jax.Array, row_keys_B) -> jax.Array:
        """Return x_BTD, the input of the first layer."""
        return dropout(self.embed(tokens_BT), self.config.dropout, row_keys_B, 0)

    def hidden(self, tokens_BT, segments_BT, row_keys_B) -> jax.Array:
        """Return x_BTD, the states of the last layer; without keys, without dropout."""
        return self.outputs(tokens_BT, segments_BT, row_keys_B, lambda x_BTD: None)[0]

    def outputs(self, tokens_BT, segments_BT, row_keys_B, measure: Callable):
        """Return the result of `hidden`, and `measure` of the output of each layer."""
        measured = []
        first_BT = document_starts(tokens_BT, segments_BT)
        x_BTD = self.enter(tokens_BT, row_keys_B)
        for index, layer in enumerate(self.layers):
            x_BTD = run_layer(x_BTD, layer, first_BT)
            measured.append(measure(x_BTD))
            x_BTD = dropout(x_BTD, self.config.dropout, row_keys_B, index + 1)
        return x_BTD, measured

    def head(self, x_BTD: jax.Array) -> jax.Array:
        return vocabulary_logits(x_BTD, self.embedding, self.output)

    def cache(self, batch_size: int, length: int) -> list[Carry]:
        return [layer.zeros((batch_size, 1 + length)) for layer in self.layers]

    def decode(self, cache: list[Carry], tokens_BT: jax.Array, start_B: jax.Array):
        """Return logits_BTV and the cache; the tokens of a row begin at start_B."""
        x_BTD = self.embed(tokens_BT)
        new_cache = []
        for layer, past in zip(self.layers, cache, strict=True):
            x_BTD, past = layer.decode(x_BTD, past, start_B)
            new_cache.append(past)
        return self.head(x_BTD), new_cache
