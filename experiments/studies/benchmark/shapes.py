"""The shapes of model and batch that the sides of the benchmark share."""

import dataclasses


@dataclasses.dataclass
class Shape:
    """A model of GPT-2's kind and its batch."""

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    seq_len: int
    batch_size: int


SHAPES = {
    "small": Shape(256, 256, 6, 8, 256, 16),
    "large": Shape(8192, 512, 8, 8, 512, 8),
    "gpt2": Shape(50304, 768, 12, 12, 1024, 16),  # for accelerators
}
LOADER_ROWS, LOADER_BATCHES = 50_000, 500  # rows on the disk, batches in a step of `loader`
PRODUCT = 4096  # the width of the square matrices of `products`


def flops_per_token(shape: Shape) -> float:
    """Count a training step's products: 6 N + 12 L T D (Chowdhery et al. 2022, appendix B).

    N is the number of weights in matrices; the embedding counts once, as the head.
    Attention counts in full, though half of it is masked.
    """
    matrices = 12 * shape.num_layers * shape.width**2 + shape.vocab_size * shape.width
    return 6 * matrices + 12 * shape.num_layers * shape.seq_len * shape.width
