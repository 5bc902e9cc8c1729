"""The arrays that the backward pass of a layer needs, as numbers.

Korthikanti et al. 2022 (arXiv 2205.05198) give the list for Megatron-LM, `megatron_saved`;
`block_saved` is that of our transformer's blocks.

Sizes are bytes of a token. Letters: D width, N heads, G key/value heads, F hidden width.
"""

from collections.abc import Iterable
from typing import NamedTuple

LANES = 128  # columns of a TPU's tile


class Saved(NamedTuple):
    """An array that is kept for the backward pass of a layer."""

    name: str
    bytes: float  # of a token
    split: bool = True  # devices that share a layer have a part each
    # False: autodiff saves it, but a compiler computes it again where it is read, from
    # another array of the list, so no memory holds it.
    kept: bool = True
    # False: autodiff saves another array instead, which follows from this one.
    traced: bool = True
    # How many times as large it is in the stack of a loop over layers.
    padding: float = 1.0


class Block(NamedTuple):
    """The sizes of a transformer's layer."""

    width: int  # D
    heads: int  # N
    kv_heads: int  # G
    hidden: int  # F
    seq_len: int
    gated: bool
    kernel: str  # of attention, as lm/models/attention.py names them
    normed: bool = True
    dropout: bool = False
    rotary: bool = False


def megatron_saved(
    width: int, heads: int, seq_len: int, selective: bool = False, sequence: bool = False
) -> list[Saved]:
    """Return what a layer of Megatron-LM keeps in 16 bits (Korthikanti et al. 2022, 4).

    `selective` computes the attention matrix again (5), `sequence` splits the norms and
    dropouts over the devices that share a layer, too (4.2.2).
    """
    found = [
        Saved("input of the first norm", 2 * width, sequence),
        Saved("input of query, key and value", 2 * width, sequence),
        Saved("query and key", 4 * width),
        Saved("value", 2 * width),
        Saved("output of attention", 2 * width),
        Saved("mask of the first dropout", width, sequence),
        Saved("input of the second norm", 2 * width, sequence),
        Saved("input of the MLP", 2 * width, sequence),
        Saved("input of the activation function", 8 * width),
        Saved("output of the activation function", 8 * width),
        Saved("mask of the second dropout", width, sequence),
    ]
    if not selective:  # softmax, the mask of its dropout, and the dropout's output
        found.append(Saved("attention matrix", 5 * heads * seq_len))
    return found


def block_saved(block: Block, itemsize: int) -> list[Saved]:
    """Return what is kept of one of our blocks without rematerialisation.

    A test holds the list against the residuals of the blocks themselves.
    """
    wide = block.hidden * itemsize
    found = norm_saved(block, itemsize, "attention") + attention_saved(block, itemsize)
    found += norm_saved(block, itemsize, "mlp")
    if not block.gated:
        return [*found, Saved("up", wide), Saved("input of down", wide)]
    return [
        *found,
        Saved("gate", wide),
        Saved("up", wide),
        # The logistic of the gate, one less it, and their product with the gate.
        Saved("parts of silu", 3 * wide, kept=False),
        Saved("input of down", wide),
    ]


def norm_saved(block: Block, itemsize: int, place: str) -> list[Saved]:
    """Return what the norm before a sublayer keeps, and the dropout after it."""
    width, size = block.width, itemsize
    found = [Saved(f"input of {place}'s norm", width * size, False, traced=False)]
    if block.normed:
        found += [
            Saved(f"{place}'s norm, centred, in float32", 4 * width, False, kept=False),
            Saved(f"{place}'s norm, scaled, in float32", 4 * width, False, kept=False),
            Saved(f"statistics of {place}'s norm", 8, False),
        ]
    found.append(Saved(f"output of {place}'s norm", width * size, False))
    if block.dropout:
        found += [
            Saved(f"mask of {place}'s dropout", width, False),
            Saved(f"zeros of {place}'s dropout", width * size, False, kept=False),
        ]
    return found


def attention_saved(block: Block, itemsize: int) -> list[Saved]:
    """Return what a kernel of attention keeps; flash kernels keep no matrix."""
    head = block.width // block.heads
    kv_width, rows = head * block.kv_heads, block.heads * block.seq_len
    size = 4 if block.kernel == "blockwise" else itemsize  # it computes in float32
    # In a stack of its layers, a TPU has heads in tiles of 128 columns.
    padding = LANES * -(-head // LANES) / head if block.kernel == "splash" else 1.0
    found = [
        Saved("query", block.width * size, padding=padding),
        Saved("key and value", 2 * kv_width * size, padding=padding),
        Saved("input of out", block.width * itemsize),
    ]
    if block.rotary:  # of queries and of keys; the same in all layers
        found.append(Saved("sines and cosines", 8 * head, False, kept=False))
    if block.kernel == "xla":
        return [
            *found,
            Saved("mask", rows, kept=False),
            Saved("attention matrix in float32", 8 * rows, kept=False),
            Saved("sums of its rows", 8 * block.heads, kept=False),
            Saved("attention matrix", itemsize * rows),
        ]
    return [
        *found,
        Saved(
            "output of attention, by head",
            block.width * itemsize,
            kept=False,
            padding=padding,
        ),
        Saved("logarithms of sums", 4 * block.heads),
    ]


def remat_saved(block: Block, itemsize: int, remat: str) -> list[Saved]:
    """Return what is kept under a policy of rematerialisation: none, dots or full.

    Under full a layer is computed again from its input. Under dots its products with
    weights are kept, but for the last one, which the backward pass does not read.
    """
    if remat == "none":
        return block_saved(block, itemsize)
    found = [Saved("input of the layer", block.width * itemsize, False)]
    if remat == "full":
        return found
    kv_width = block.width // block.heads * block.kv_heads
    return [
        *found,
        Saved("products of query, key and value", (block.width + 2 * kv_width) * itemsize),
        Saved("product of out", block.width * itemsize, False),
        Saved("products of up and gate", (1 + block.gated) * block.hidden * itemsize),
    ]


def activation_bytes(
    saved: Iterable[Saved],
    tokens: float,
    layers: float,
    tensor: int = 1,
    traced: bool = False,
    padded: bool = False,
) -> float:
    """Return the bytes that so many layers keep, for `tokens` of a device.

    `traced`: what autodiff saves crosses from a loop over layers forward to one backward,
    so that the compiler cannot compute it again. `padded`: arrays have the tiles of a loop.
    """
    token = sum(
        x.bytes * (x.padding if padded else 1) / (tensor if x.split else 1)
        for x in saved
        if (x.traced if traced else x.kept)
    )
    return token * tokens * layers
