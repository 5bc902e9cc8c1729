"""Print the memory and the bytes on the wire of a run, from its compiled program."""

from jax.sharding import Mesh

from configs.base import Experiment
from experiments.costs.step import compiled_costs
from experiments.processes.messages import human, size
from experiments.run.trial import build_trial
from lm.task import num_parameters
from parallel.cost.ledger import ledger
from parallel.layout import bytes_per_device
from parallel.mesh import batch_degree


def dry_run(config: Experiment, mesh: Mesh) -> None:
    trial = build_trial(config, config.data.vocab_size, mesh)
    state = trial.program.abstract
    costs = compiled_costs(trial.step, mesh, state)
    c = config
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
    for entry in ledger(trial.step.as_text(), mesh):
        name = f"{entry.kind} over {', '.join(entry.axes) or 'nothing'}"
        count, sent = lines.get(name, (0, 0))
        lines[name] = (count + entry.count, sent + entry.sent_bytes)
    for name, value in lines.items():
        if isinstance(value, tuple):
            count, sent = value
            value = f"{size(sent)} a step and device, in {count:g} collectives"
        print(f"{name:32} {value}")
