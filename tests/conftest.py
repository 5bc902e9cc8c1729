"""Eight emulated CPU devices and quick compilation, before any test touches JAX.

Most of a test's time is compilation, so LLVM's expensive passes are off and compiled
programs are kept between runs; processes that the tests start inherit both.
"""

import os
import pathlib

CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "xla"
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402  the settings above must come first

jax.config.update("jax_num_cpu_devices", 8)
