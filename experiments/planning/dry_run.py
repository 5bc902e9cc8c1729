"""Print the memory and the bytes on the wire of a run, from its compiled program."""

from typing import Any

from jax.sharding import Mesh

from experiments.costs.step import absent_costs, compiled_costs
from experiments.planning.explanation import against_closed_form
from experiments.processes.messages import human, size
from experiments.run.phases.phase import Phase
from experiments.run.steps import at_its_largest
from experiments.run.trial import build_trial
from lm.task import num_parameters
from parallel.cost.ledger import step_ledger
from parallel.layout import bytes_per_device
from parallel.mesh import batch_degree, is_absent


def dry_run(phase: Phase, mesh: Mesh) -> None:
    config = at_its_largest(phase)
    trial = build_trial(config, config.data.vocab_size, mesh)
    state = trial.program.abstract
    entries = step_ledger(trial.step, mesh)
    costs = compiled_costs(trial.step, entries, state)
    c = trial.config
    lines = {
        "mesh": f"{dict(mesh.shape)} of {mesh.devices.flat[0].device_kind}",
        "strategy": f"{c.parallel.strategy}, accumulation {c.parallel.accumulation}",
        "parameters": human(num_parameters(trial.program.abstract_portable.params)),
        "tokens per step": human(c.data.batch_size * c.data.seq_len),
        "rows per device": f"{c.data.batch_size // batch_degree(mesh)}",
        "parameters per device": size(bytes_per_device(state.params)),
        "optimizer per device": size(bytes_per_device(state.opt)),
        "exchange per device": f"{size(bytes_per_device(state.comm))} (residuals, late "
        "gradients, what was agreed)",
        "activations per device": f"{size(costs['temporary_bytes'])} (compiled "
        "program's temporaries, gradients included)",
        "peak per device": size(costs["peak_bytes"]),
    }
    if is_absent(mesh):
        lines |= absent_lines(absent_costs(trial.step, mesh))
    for entry in entries:
        name = f"{entry.kind} over {', '.join(entry.axes) or 'nothing'}"
        count, sent = lines.get(name, (0, 0))
        lines[name] = (count + entry.count, sent + entry.sent_bytes)
    for name, value in lines.items():
        if isinstance(value, tuple):
            count, sent = value
            value = f"{size(sent)} a step and device, in {count:g} collectives"
        print(f"{name:32} {value}")
    if is_absent(mesh):
        print("\n".join(["", *against_closed_form(config, trial, mesh, entries)]))


def absent_lines(costs: dict[str, Any]) -> dict[str, str]:
    """Say what the compiler of an absent device needs, and whether the device has it."""
    peak, chip = costs["peak_bytes"], costs["chip_bytes"]
    return {
        "arguments per device": size(costs["argument_bytes"]) + " (state and batch)",
        "results per device": size(costs["result_bytes"]) + " (not in their place)",
        "program per device": size(costs["code_bytes"]),
        "memory per device": f"{size(peak)} of {size(chip)}, {peak / chip:.0%}: "
        + ("fits" if peak <= chip else "does not fit"),
        "compiler's FLOPs per device": human(costs["compiled_flops"])
        + " (a loop's body once)",
        "compiler's bytes moved": size(costs["accessed_bytes"]) + " (a loop's body once)",
    }
