"""experiments.train on a device without the memory for a whole batch at once."""

import runpy

import jax

from experiments.run import loop

usual = loop.compile_steps


def compile_steps(phase, *rest):
    if phase.config.parallel.accumulation < 2:
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123456 bytes."
        )
    return usual(phase, *rest)


if __name__ == "__main__":
    loop.compile_steps = compile_steps
    runpy.run_module("experiments.train", run_name="__main__")
