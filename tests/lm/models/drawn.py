"""Parameters drawn in NumPy: the program of a task's `init` takes long to compile."""

import jax
import numpy as np

from lm.task import Params, Task


def drawn(task: Task, size: float, seed: int = 0) -> Params:
    """Draw all parameters, so that nothing is zero; the scales of norms lie around 1."""
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        return np.float32(size * rng.normal(size=x.shape) + (path[-1].key == "scale"))

    return jax.tree.map_with_path(leaf, jax.eval_shape(task.init, jax.random.key(0)))
