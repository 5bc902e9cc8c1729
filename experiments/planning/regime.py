"""Which regime a run is in: little text, enough text for one device's model, or more."""

from typing import NamedTuple

from configs.base import Experiment
from experiments.processes.messages import human, size
from lm.data.sources.listing import list_files
from lm.data.sources.stdlib import source_files, split_of, stdlib_folder
from lm.task import num_parameters
from parallel.cost.machine import Hardware
from parallel.cost.memory import whole_bytes
from parallel.cost.plan import Model

BYTES_PER_TOKEN = 4.0  # of text, by a tokenizer of some 30,000 tokens: assumed
TOKENS_PER_PARAMETER = 20  # for a given number of FLOPs (Hoffmann et al. 2022)
GOOD_EPOCHS = 4  # repeated text is about as good as new (Muennighoff et al. 2023)
# From so many readings on token dropout of 5 % pays: it cost 1 % of the loss at 7, and won
# 0.9 % at 9.5 and 1.6 % at 17 (docs/questions/which-regime-is-my-run-in.md).
MANY_EPOCHS = 8
DROPOUT = ("--config.data.augment.kind=token_dropout", "--config.data.augment.rate=0.05")


class Regime(NamedTuple):
    name: str  # small, medium or large
    reason: str
    flags: tuple[str, ...]  # the recommended config, beside the best candidate's flags


def text_tokens(config: Experiment) -> float | None:
    """Estimate the tokens of the training text from its files' sizes; None: not known."""
    data = config.data
    if data.sources:
        return None
    if data.source == "stdlib":
        folder = stdlib_folder()
        files = [folder / name for name in source_files() if split_of(name) == "train"]
    elif data.path:
        files = list_files("data.path", data.path)
    else:
        return None
    found = (file.stat().st_size for file in files if file.exists())  # no link to nothing
    return sum(found) / BYTES_PER_TOKEN


def regime(model: Model, hardware: Hardware, tokens: float, trained: float) -> Regime:
    """Tell the regime from the tokens of the text, the parameters and a device's memory.

    `trained` are the tokens that the run reads, the repeated ones as well.

    small: even four readings are fewer tokens than the model would learn from.
    medium: the state and a gradient fit on one device. large: they do not.
    """
    count = num_parameters(model.params)
    wanted = TOKENS_PER_PARAMETER * count
    told = f"{human(tokens)} tokens of text for {human(count)} parameters"
    if GOOD_EPOCHS * tokens < wanted:
        return Regime(
            "small",
            f"{told}: {GOOD_EPOCHS} readings give {human(GOOD_EPOCHS * tokens)} tokens, "
            f"and a model of this size learns from {human(wanted)}. More readings add "
            "little, more devices only finish sooner: use one process, a smaller model or "
            f"more text. This run reads it {trained / tokens:.1f} times; from "
            f"{MANY_EPOCHS} times on light augmentation pays.",
            DROPOUT if trained >= MANY_EPOCHS * tokens else (),
        )
    held = whole_bytes(model.params) * 2 + whole_bytes(model.opt)
    limit = hardware.machine.memory
    state = f"parameters, gradients and optimizer take {size(held)}"
    if held < limit / 2:
        return Regime(
            "medium",
            f"{told} are enough, and {state}, which one device of {size(limit)} holds "
            "beside activations: replicas over processes, each with the whole model.",
            ("--config.parallel.strategy=shard_map",),
        )
    return Regime(
        "large",
        f"{told} are enough, and {state}: more than half of a device's {size(limit)}, so "
        "the state is split over devices.",
        ("--config.parallel.strategy=fsdp",),
    )
