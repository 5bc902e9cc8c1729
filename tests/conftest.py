"""Eight emulated CPU devices and quick compilation, before any test touches JAX.

Most of a test's time is compilation, so LLVM's expensive passes are off and compiled
programs are kept between runs; processes that the tests start inherit both.
"""

import gc
import importlib.metadata
import os
import pathlib
import zlib

CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "xla"
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
XLA_FLAGS += " --xla_cpu_opt_preset=FAST_COMPILE"
# A device that a busy machine lets wait for long is no deadlock, which ends the process.
XLA_FLAGS += " --xla_cpu_collective_call_terminate_timeout_seconds=300"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Compiles in a third of the time. Later versions know no other emitters.
    XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"
    # Cut into 32 parts to be compiled at once, small programs take a tenth longer.
    XLA_FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = XLA_FLAGS
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # `make accelerator` sets another

import jax  # noqa: E402  the settings above must come first

jax.config.update("jax_num_cpu_devices", 8)

# What is imported stays, and JAX makes much that lives long: collect seldom.
gc.freeze()
gc.set_threshold(100_000, 20, 20)


def pytest_addoption(parser):
    text = "of the cases in each file, run one in N"
    parser.addoption("--one-in", type=int, default=1, metavar="N", help=text)


def pytest_collection_modifyitems(config, items):
    """Leave out cases; which of them differs from file to file, but not from run to run."""
    num, cases = config.getoption("one_in"), {}
    for item in items:
        cases.setdefault(item.nodeid.partition("::")[0], []).append(item)
    left_out = set()
    for name, group in cases.items():
        kept = group[zlib.crc32(name.encode()) % min(num, len(group)) :: num]
        left_out |= set(group) - set(kept)
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
