"""Structured pruning: what is 0 goes, the model stays the same, and arrays are smaller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.compress.structure import narrowed, narrower
from lm.models.setting import Setting
from lm.models.transformer.config import TransformerConfig
from tests.parallel.toy import MODEL, SEQ_LEN, VOCAB, batches

GONE = {0: (1, [0, 2, 60]), 1: (0, [5, 6, 7])}  # layer -> key/value head, columns


def with_zeros(params, heads_each: int):
    """Set a head and three columns of each layer to 0, other ones in each."""

    def layer(index: int, one):
        head, columns = GONE[index]
        width = one["attention"]["key"]["kernel"].shape[1] // 2
        gone = {"key": width, "value": width, "query": width * heads_each}
        for name, size in gone.items():
            for part, x in one["attention"][name].items():
                one["attention"][name][part] = x.at[
                    ..., head * size : (head + 1) * size
                ].set(0)
        out, size = one["attention"]["out"], gone["query"]
        out["kernel"] = out["kernel"].at[head * size : (head + 1) * size].set(0)
        for name in ("up", "gate"):
            for part, x in one["mlp"][name].items():
                one["mlp"][name][part] = x.at[..., np.array(columns)].set(0)
        down = one["mlp"]["down"]
        down["kernel"] = down["kernel"].at[np.array(columns)].set(0)
        return one

    stack = params["scanned_layers"]
    layers = [layer(i, jax.tree.map(lambda x: x[i], stack)) for i in GONE]  # noqa: B023
    return params | {"scanned_layers": jax.tree.map(lambda *x: np.stack(x), *layers)}


def test_a_model_without_its_zeros_is_the_same_model():
    choices = {"num_layers": 2, "scan_layers": True, "mlp_width": 64}
    model = TransformerConfig(**vars(MODEL) | choices)  # 4 heads, two on each key
    fewer = {"num_heads": 2, "num_kv_heads": 1, "mlp_width": 61}
    target = narrower(model, TransformerConfig(**vars(model) | fewer))
    assert target.head_width == 8
    whole, small = (x.task(Setting(VOCAB, SEQ_LEN)) for x in (model, target))
    rng, shapes = np.random.default_rng(0), jax.eval_shape(whole.init, jax.random.key(0))
    drawn = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), "f4"), shapes)
    params = with_zeros(drawn, heads_each=2)
    less = jax.jit(lambda p: narrowed(p, model, target))(params)
    expected = jax.eval_shape(small.init, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, less) == jax.tree.map(
        lambda x: x.shape, expected
    )
    batch = batches(1)[0]
    logits = jax.jit(small.logits)(less, batch)
    np.testing.assert_allclose(logits, jax.jit(whole.logits)(params, batch), atol=1e-5)
    # Layers by themselves lose the same as layers of a stack.
    apart = less | {"layers": {0: jax.tree.map(lambda x: x[0], params["scanned_layers"])}}
    del apart["scanned_layers"]
    one = jax.jit(lambda p: narrowed(p, model, target))(apart)["layers"][0]
    for a, b in zip(
        jax.tree.leaves(one), jax.tree.leaves(less["scanned_layers"]), strict=True
    ):
        np.testing.assert_array_equal(a, b[0])


def test_a_model_cannot_grow_or_part_heads_that_share():
    for fewer, message in [
        ({"num_heads": 8}, "model.num_heads is 8, but the run has 4"),
        ({"mlp_width": 999}, "model.mlp_width is 999"),
        ({"num_heads": 2}, "keep the proportion"),
    ]:
        with pytest.raises(ValueError, match=message):
            narrower(MODEL, TransformerConfig(**vars(MODEL) | fewer))
