"""One of two processes that compile a program which both run; it tells what it compiled."""

import json
import sys

import jax
import jax.numpy as jnp
from jax._src import compiler
from jax.sharding import NamedSharding, PartitionSpec

from experiments.processes import programs
from parallel.mesh import data_mesh

port, index, cache = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_compilation_cache_dir", cache)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
programs.share_cache()

compiled = []
compile_anew = compiler.backend_compile_and_load


def counted(backend, module, *rest):
    compiled.append(str(module.operation.attributes["sym_name"]).strip('"'))
    return compile_anew(backend, module, *rest)


compiler.backend_compile_and_load = counted
spread = NamedSharding(data_mesh(-1), PartitionSpec("data"))
whole = NamedSharding(data_mesh(-1), PartitionSpec())


def squares() -> jax.Array:
    """Sum over all devices, so that a wrong device's program gives a wrong number."""
    numbers = jax.lax.with_sharding_constraint(jnp.arange(64.0), spread)
    return jnp.sum(numbers**2)


total = jax.jit(squares, out_shardings=whole)().item()
alone = jax.jit(lambda x: x + int(index))(jnp.ones(3)).tolist()  # on one device of its own
print("\n" + json.dumps({"total": total, "alone": alone, "compiled": compiled}))
