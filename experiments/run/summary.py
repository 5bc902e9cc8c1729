"""The final block of a run: printed for people, and as summary.json for programs."""

import math
import pathlib
import platform
import statistics
from typing import Any

import flax
import jax
import optax
from tokenizers import Tokenizer

from configs.base import Experiment
from experiments.costs.machine import are_emulated, cores, peak_memory_bytes
from experiments.costs.step import compiled_costs
from experiments.generation.prompts import Inputs, continuations, encode_inputs
from experiments.processes import allocator
from experiments.processes.files import json_line, read_object, write_whole
from experiments.processes.messages import human, is_main_process
from experiments.run.build import Run, model_flops
from experiments.run.evaluation import told_interval, told_sources
from experiments.run.log import Log, read_metrics
from experiments.run.phases.account import by_phase, told_phases
from experiments.run.phases.phase import phases_of
from experiments.run.steps import Steps
from experiments.run.survival import goodput
from experiments.run.survival.clock import PARTS
from lm.decoding import Sampling
from lm.task import num_parameters
from parallel.cost.ledger import step_ledger
from parallel.program import TrainState

FIGURES = (
    "val_loss", "val_perplexity", "val_bits_per_byte", "bigram_loss", "tokens_per_second",
    "steps",
)  # fmt: skip
REMOVE_SUMMARY = "remove it, and the command that trained the run writes it anew"


def sample_inputs(config: Experiment, tokenizer: Tokenizer) -> Inputs:
    """Encode the prompt of the sample at the end; ValueError if it is too long."""
    num_new = min(60, config.data.seq_len // 2)
    try:
        return encode_inputs(config, tokenizer, [config.prompt], num_new)
    except ValueError as error:
        raise ValueError(f"config.prompt: {error}") from None


def summarize(
    run: Run,
    state: TrainState,
    validation: dict[str, float],
    shifted: dict[str, float] | None,
    log: Log,
    epochs: float,
) -> None:
    """Generate a sample, write summary.json and print the block.

    `validation` and `shifted` are the evaluations of held-out rows of the training text's
    kind and of another; `epochs` is how often the training text was seen.
    """
    config, data, program = run.config, run.data, run.program
    params, inputs = program.params(state), sample_inputs(config, data.tokenizer)
    (sample,) = continuations(
        run.task, params, data.tokenizer, inputs, Sampling(), config.seed
    )
    if not is_main_process():
        return
    summary = {
        "val_loss": validation["loss"],
        # 95 %, over the choice of the documents; None where rows do not tell documents.
        "loss_interval": validation.get("loss_interval"),
        "documents": validation.get("documents"),
        "loss_by_source": validation.get("loss_by_source"),
        "val_perplexity": validation["perplexity"],
        "val_bits_per_byte": validation["bits_per_byte"],
        "shifted_loss": shifted and shifted["loss"],
        "bigram_loss": data.meta["bigram_loss"],
        "steps": config.steps,
        "tokens": log.tokens,
        "epochs": epochs,
        # Unknown (NaN) if the records of all steps were lost.
        "tokens_per_second": statistics.median(log.rates or [math.nan]),
        "skipped_steps": log.skipped,
        "loss_spikes": log.spikes.count,
        "padding": data.meta["train"]["padding"],
        "parameters": num_parameters(program.abstract_portable.params),
        "seconds": {part: run.clock.seconds[part] for part in PARTS},
        "goodput": goodput.told(run.workdir),
        "core_share": run.clock.core_seconds["step"]
        / max(run.clock.seconds["step"], 1e-9)
        / cores(),
        "peak_memory_bytes": peak_memory_bytes(),
        "allocator": allocator.told(jax.default_backend()),
        "model_flops_per_token": model_flops(config, data.tokenizer.get_vocab_size()),
        **step_costs(run),
        "noise_scale": log.noise.value,
        # replica, or worker of a server -> the largest multiple of the median's seconds of
        # computing; if measured
        "stragglers": log.watch and log.watch.worst,
        "emulated": are_emulated(),
        "strategy": config.parallel.strategy,  # of the last phase
        "phases": phase_figures(run),
        "devices": program.mesh.size,
        "device_kind": program.mesh.devices.flat[0].device_kind,
        "processes": jax.process_count(),
        "workers": program.workers,  # of a parameter server
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
        },
        "sample": config.prompt + (" -> " if config.data.source_len else "") + sample,
    }
    write_whole(run.workdir / "summary.json", json_line(summary, indent=2))
    print_summary(summary)


def phase_figures(run: Run) -> list[dict[str, Any]]:
    """Return what each phase took; [] if there is only one."""
    phases = phases_of(run.phase.whole)
    if len(phases) == 1:
        return []
    records = read_metrics(run.workdir / "metrics.jsonl")
    return by_phase([r for r in records if r["split"] == "train"], phases)


def step_costs(run: Run) -> dict[str, int | float]:
    """Read the bytes of the largest step from its compiled program; {} if none is."""
    program = run.program
    if not isinstance(program.step, Steps):
        return {}
    step = program.step.largest
    entries = step_ledger(step, program.mesh)
    return compiled_costs(step, entries, program.abstract)


def read_summary(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Read the final block; None if the run is not complete.

    JSON has no value for a figure that is not finite; null is read as NaN, so that callers
    can compare and print it. ValueError if the file is damaged.
    """
    file = workdir / "summary.json"
    if not file.exists():
        return None
    summary = read_object(file, REMOVE_SUMMARY)
    if missing := [name for name in FIGURES if name not in summary]:
        raise ValueError(
            f"{file} is damaged (there is no {', '.join(missing)}); {REMOVE_SUMMARY}"
        )
    return summary | {name: math.nan for name in FIGURES if summary[name] is None}


def print_summary(s: dict[str, Any]) -> None:
    spent = {part: x for part, x in s["seconds"].items() if part != "copy" or x}
    seconds = "  ".join(f"{part} {x:.1f}" for part, x in spent.items())
    gain = s["bigram_loss"] - s["val_loss"]
    print(
        f"""
validation loss      {s["val_loss"]:.4f} nats a token{told_interval(s)}
  perplexity         {s["val_perplexity"]:.2f}
  bits per byte      {s["val_bits_per_byte"]:.4f}
{sources_line(s)}{shifted_line(s)}\
bigram loss          {s["bigram_loss"]:.4f} (add-k, same tokens; the model is \
{abs(gain):.4f} {"better" if gain > 0 else "worse"})
tokens               {human(s["tokens"])} in {s["steps"]} steps{epochs_seen(s)}, \
{human(s["tokens_per_second"])} a second
seconds              {seconds}
{goodput_line(s)}\
peak memory          {human(s["peak_memory_bytes"])}B{allocator_line(s)}
strategy             {s["strategy"]} over {workers_told(s)}{s["devices"]} x \
{s["device_kind"]}
{phases_lines(s)}skipped, spikes      {s["skipped_steps"]}, {s["loss_spikes"]}
{stragglers_line(s)}\
sample
{indent(s["sample"])}"""
    )


def allocator_line(summary: dict[str, Any]) -> str:
    return f" (allocator: {summary['allocator']})" if "allocator" in summary else ""


def epochs_seen(summary: dict[str, Any]) -> str:
    return f" ({summary['epochs']:.3g} epochs)" if "epochs" in summary else ""


def goodput_line(summary: dict[str, Any]) -> str:
    """Return a line about the whole run, if parts of it were lost or restarted."""
    spent = summary.get("goodput", {}).get("seconds", {})
    if not spent.get(goodput.RESTART):
        return ""
    told = "  ".join(f"{part} {seconds:.1f}" for part, seconds in spent.items())
    share = summary["goodput"]["step_share"]
    return f"  with restarts      {told} ({share:.1%} in steps that count)\n"


def sources_line(summary: dict[str, Any]) -> str:
    told = told_sources(summary)
    return f"  by source          {told}\n" if told else ""


def phases_lines(summary: dict[str, Any]) -> str:
    return "".join(f"  {line}\n" for line in told_phases(summary))


def workers_told(summary: dict[str, Any]) -> str:
    return f"{summary['workers']} workers of " if summary.get("workers") else ""


def stragglers_line(summary: dict[str, Any]) -> str:
    told = told_stragglers(summary)
    return f"stragglers           {told}\n" if told else ""


def told_stragglers(summary: dict[str, Any]) -> str:
    """Return words for who was slower than the others; "": none was."""
    who = "worker" if summary.get("workers") else "replica"
    return ", ".join(
        f"{who} {index} up to {ratio:.2f} x the median's seconds of computing"
        for index, ratio in (summary.get("stragglers") or {}).items()
    )


def shifted_line(summary: dict[str, Any]) -> str:
    if (loss := summary["shifted_loss"]) is None:
        return ""
    return f"shifted loss         {loss:.4f} (held-out text of another kind)\n"


def indent(text: str) -> str:
    return "\n".join("  | " + line for line in text.splitlines())
