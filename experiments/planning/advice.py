"""A plan in words: why the best is best, what does not fit and by how much, which flags."""

from configs.base import Experiment
from experiments.processes.messages import human, size
from parallel.cost.machine import Hardware
from parallel.cost.plan import Candidate

ERROR = 0.1  # of most plans' memory, against the compiler (docs/planner.md)
LOWERED_BY = {  # the part of the memory -> what makes it smaller
    "parameters": "--config.parallel.strategy=fsdp splits the parameters",
    "optimizer": "--config.parallel.strategy=zero1 splits the optimizer's state, and "
    "--config.parallel.offload=optimizer keeps it in the host's memory",
    "exchange": "--config.parallel.exchange.codec=none keeps no residuals",
    "gradients": "--config.parallel.strategy=fsdp (or zero2) splits the gradients",
    "activations": "a larger --config.parallel.accumulation cuts the batch into smaller "
    "microbatches, and --config.model.remat=full computes activations again",
    "gathered": "--config.parallel.strategy=tensor or hybrid splits each layer",
    "logits": "a smaller --config.model.loss_chunk has fewer logits at once",
    "workspace": "a larger --config.parallel.accumulation cuts the batch into smaller "
    "microbatches",
    "program": "--config.model.scan_layers=true writes out one layer for all",
}


def flags_of(candidate: Candidate, config: Experiment) -> list[str]:
    """Return the flags that turn the config into the candidate's."""
    wanted = {
        "parallel.strategy": candidate.strategy,
        **{f"parallel.{axis}": n for axis, n in candidate.degrees.items()},
        "parallel.accumulation": candidate.accumulation,
    }
    if candidate.chunks > 1:
        wanted["parallel.chunks"] = candidate.chunks
    if getattr(config.model, "remat", candidate.remat) != candidate.remat:
        wanted["model.remat"] = candidate.remat
    return [f"--config.{name}={value}" for name, value in wanted.items()]


def named(candidate: Candidate) -> str:
    axes = " x ".join(f"{axis} {n}" for axis, n in candidate.degrees.items())
    return (
        f"{candidate.strategy} over {axes}, {candidate.accumulation} microbatches"
        + f", remat {candidate.remat}" * (candidate.remat != "none")
    )


def largest_part(candidate: Candidate) -> str:
    return max(candidate.memory, key=candidate.memory.get)


def reasons(found: list[Candidate], best_is: str = "is the fastest") -> list[str]:
    """Return sentences about the best candidate, its rivals, and what does not fit."""
    best, said = found[0], []
    if best.fits:
        share = best.time[best.bound.partition(" over ")[0]] / best.seconds
        said.append(
            f"{named(best)} {best_is} that fits: {duration(best.seconds)} a step, "
            f"{share:.0%} of it {best.bound}; it takes {size(best.memory_bytes)} of a "
            f"device's {size(best.limit)}, most of it {largest_part(best)}."
        )
        if best.memory_bytes > (1 - ERROR) * best.limit:
            said.append(
                f"That is within {ERROR:.0%} of the limit, and plans are as wrong as that "
                "(docs/planner.md): let the compiler check it, with --topology or "
                "experiments.train --dry_run."
            )
        if best.time["hidden"]:
            said.append(
                f"{duration(best.time['hidden'])} of its communication runs beside the "
                "products."
            )
    for rival in rivals(found):
        said.append(compared(rival, best))
    return said


def rivals(found: list[Candidate]) -> list[Candidate]:
    """Return the best candidate of each other strategy."""
    first: dict[str, Candidate] = {}
    for one in found:
        first.setdefault(one.strategy, one)
    return [one for name, one in first.items() if name != found[0].strategy]


def compared(rival: Candidate, best: Candidate) -> str:
    """Say in a sentence why a strategy's best candidate is not the best."""
    if not rival.fits:
        return (
            f"{rival.strategy} does not fit: its smallest, {named(rival)}, needs "
            f"{size(rival.memory_bytes)}, {size(rival.memory_bytes - rival.limit)} too "
            f"much; the largest part is {largest_part(rival)}, "
            f"{size(rival.memory[largest_part(rival)])}."
        )
    more = {name: value - best.time.get(name, 0.0) for name, value in rival.time.items()}
    more.pop("hidden")
    worst = max(more, key=more.get)
    slower = rival.seconds / best.seconds - 1
    if slower < 0.005 or more[worst] <= 0:
        return f"{named(rival)} is as fast within 1 %, with {size(rival.memory_bytes)}."
    return (
        f"{named(rival)} is {slower:.0%} slower: {worst} takes "
        f"{duration(more[worst])} more."
    )


def nothing_fits(found: list[Candidate], hardware: Hardware) -> str:
    """Return the error for a plan in which no candidate fits, with the nearest."""
    nearest = found[0]
    part = largest_part(nearest)
    return (
        f"nothing fits on {hardware.name}: the nearest is {named(nearest)}, which needs "
        f"{size(nearest.memory_bytes)} where a device has {size(nearest.limit)}, "
        f"{size(nearest.memory_bytes - nearest.limit)} too much. Its largest part is "
        f"{part}, {size(nearest.memory[part])}: {LOWERED_BY[part]}; or take more devices, "
        "or a smaller model"
    )


def duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length * (2 if unit != "s" else 1):
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds * 1e3:.3g} ms"


def cost_lines(
    best: Candidate, config: Experiment, devices: int, critical: float
) -> list[str]:
    """Say what the run costs, and what other batch sizes would.

    To one loss, a batch of B tokens takes 1 + critical/B times the fewest steps, and 1 +
    B/critical times the fewest tokens (McCandlish et al. 2018, 2.3).
    """
    batch = config.data.batch_size * config.data.seq_len
    hours = best.seconds * config.steps / 3600
    said = [
        f"{config.steps:,} steps of {human(batch)} tokens take "
        f"{duration(hours * 3600)}, {hours * devices:.3g} device-hours."
    ]
    if not critical:
        return [
            *said,
            "The critical batch size is not known: give --critical_batch=TOKENS, the "
            "noise_scale of a run's summary.json, to see what other batches cost.",
        ]
    fewest = config.steps / (1 + critical / batch)
    for factor in (0.25, 0.5, 1, 2, 4):
        steps = fewest * (1 + critical / (batch * factor))
        step = best.time["compute"] + best.time["activations"] + best.time.get("bubble", 0)
        seconds = steps * (best.seconds + step * (factor - 1))
        said.append(
            f"The same loss with batches of {human(batch * factor)} tokens: "
            f"{human(steps)} steps, {duration(seconds)}, "
            f"{seconds * devices / 3600:.3g} device-hours."
        )
    return said
