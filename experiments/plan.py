"""Plan a run: which parallelism, what degree, will it fit, how long, and why.

python -m experiments.plan --config=configs/llama_1b.py --hardware=tpu-v5e:4x8
    [--out=FOLDER] [--fit] [--topology=tpu-v5e:4x8] [--top=10] [--only=fsdp,zero1]
    [--tokens=3e9] [--critical_batch=500000]

Prints a table of strategies x degrees x microbatches x rematerialisation, the best first:
memory of a device and seconds of a step, by part, and what bounds it; then the flags of the
best, the reasons, what does not fit and by how much, the cost of the run, and which regime
the size of the text makes it. --hardware is a known machine (tpu-v5e:4x8, h100:8x2), this
(which experiments.calibrate has measured) or a file that it wrote.

Nothing is compiled, so an answer takes seconds. --topology compiles the best candidates for
absent TPUs. --fit keeps the strategy and the degrees of the config, and looks for the
largest microbatch and the least rematerialisation that fit; it compiles its answer, if the
devices here are those of the plan. --out writes plan.json and plan.html. docs/planner.md
says how wrong plans are.
"""

import pathlib
from typing import Any

import jax
from absl import flags

from configs.base import Experiment
from experiments.planning.absent import start_devices
from experiments.planning.advice import (
    cost_lines,
    flags_of,
    nothing_fits,
    reasons,
)
from experiments.planning.compiled import compile_candidate, lacking
from experiments.planning.found import all_tables, write_plan
from experiments.planning.hardware import check_topology, hardware_of
from experiments.planning.regime import Regime, regime, text_tokens
from experiments.planning.search import kept_degrees, planned, strategies_of
from experiments.planning.shapes import model_of
from experiments.processes import join, topology
from experiments.processes.messages import say, size, user_errors
from experiments.run import startup
from experiments.run.phases.phase import first_phase
from parallel.cost.machine import Hardware
from parallel.cost.plan import Candidate, Model

join.define_flags()
CONFIG = startup.define_config()
TOPOLOGY = topology.define_flag()
HARDWARE = flags.DEFINE_string(
    "hardware", None, "The devices: tpu-v5e:4x8, h100:8x2, this, or a file."
)
OUT = flags.DEFINE_string("out", None, "Folder for plan.json and plan.html.")
FIT = flags.DEFINE_bool(
    "fit", False, "Keep strategy and degrees; find the largest microbatch that fits."
)
TOP = flags.DEFINE_integer("top", 10, "Candidates to print.", lower_bound=1)
CHECKED = flags.DEFINE_integer(
    "checked", 1, "With --topology: candidates to compile.", lower_bound=1
)
ONLY = flags.DEFINE_list("only", None, "Strategies to try; else all that are exact.")
TOKENS = flags.DEFINE_float(
    "tokens", None, "Tokens of the text, where the files do not tell.", lower_bound=1
)
CRITICAL = flags.DEFINE_float(
    "critical_batch", 0.0, "Critical batch size, in tokens; 0: not known.", lower_bound=0
)


def main() -> None:
    with user_errors():
        config = startup.load_config(CONFIG)
        config.validate()
        config = first_phase(config).config
        name = HARDWARE.value or TOPOLOGY.value
        if not name:
            raise ValueError(
                "no --hardware given; for example --hardware=tpu-v5e:4x8, or this"
            )
        hardware = hardware_of(name)
        check_topology(TOPOLOGY.value, hardware)
        names = strategies_of(ONLY.value, config, FIT.value)
        devices = start_devices(TOPOLOGY.value, config)
        model = model_of(config, hardware.machine.platform)
        found = planned(model, hardware, config, names)
        if FIT.value:
            found = kept_degrees(found, config, hardware)
    with topology.compiler_errors(name):
        compiled = check_best(found, config, hardware, devices)
    with user_errors():
        show(config, model, hardware, found, compiled)


def check_best(
    found: list[Candidate],
    config: Experiment,
    hardware: Hardware,
    devices: list[jax.Device] | None,
) -> list[dict[str, Any]]:
    """Compile the best candidates; with --fit, go on until one fits.

    Without --topology, --fit compiles for the devices here, if they are those of the plan.
    """
    if devices is None and not FIT.value:
        return []
    if devices is None and (reason := lacking(hardware)):
        say(f"--fit: not compiled, {reason}")
        return []
    told = []
    for one in [one for one in found if one.fits]:
        told.append(compile_candidate(one, config, devices))
        if len(told) >= CHECKED.value and (told[-1]["fits"] or not FIT.value):
            break
    return told


def show(
    config: Experiment,
    model: Model,
    hardware: Hardware,
    found: list[Candidate],
    compiled: list[dict[str, Any]],
) -> None:
    best, kind = found[0], None
    words = reasons(found, "has the largest microbatch" if FIT.value else "is the fastest")
    if best.fits:
        words += cost_lines(best, config, hardware.num_devices, CRITICAL.value)
    tokens = TOKENS.value or text_tokens(config)
    if tokens:
        trained = config.steps * config.data.batch_size * config.data.seq_len
        kind = regime(model, hardware, tokens, trained)
    for one in all_tables(found, model, hardware, TOP.value):
        print(f"{one.title}. {one.note}".strip(), one.markdown(padded=True), sep="\n\n")
        print()
    if best.fits:
        print(f"The best: {' '.join(flags_of(best, config))}\n")
    print("\n".join(words))
    print(told_regime(kind))
    for one in compiled:
        print(told_compiled(one))
    if OUT.value:
        page = write_plan(
            pathlib.Path(OUT.value), found, model, hardware, words, kind, compiled,
            TOP.value,
        )  # fmt: skip
        print(f"wrote {page} and {page.with_suffix('.json')}")
    if not best.fits:
        raise ValueError(nothing_fits(found, hardware))


def told_regime(kind: Regime | None) -> str:
    if kind is None:
        return "The size of the text is not known; give --tokens to learn the regime."
    return f"Regime {kind.name}: {kind.reason}\n  {' '.join(kind.flags)}"


def told_compiled(one: dict[str, Any]) -> str:
    if "error" in one:
        return f"compiled {one['candidate']}: does not fit: {one['error']}"
    planned_bytes, real = one["planned_bytes"], one["compiled_bytes"]
    return (
        f"compiled {one['candidate']}: {size(real)} a device, planned "
        f"{size(planned_bytes)} ({planned_bytes / real - 1:+.0%}); sends "
        f"{size(one['compiled_sent'])}, planned {size(one['planned_sent'])}: "
        + ("fits" if one["fits"] else "does not fit")
    )


if __name__ == "__main__":
    startup.run(main)
