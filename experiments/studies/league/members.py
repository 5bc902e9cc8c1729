"""The members of the league, the one protocol of all, and what is tuned of each.

A size is a number of parameters: `0.3M` is the league's own, the others are the
frontier's. An island is one device, but in the one member that says otherwise.
"""

from dataclasses import replace
from typing import NamedTuple

from configs import fields
from configs.base import Experiment
from configs.sweeps.combine import Member
from configs.sweeps.strategies import codec, local
from experiments.studies.uneven.members import one_layer
from lm.data.config import DataConfig
from lm.optim import OptimConfig

STEPS = 1560  # = 52 x 30 = 24 x 65: whole numbers of rounds
TRIAL_SHARE = 4  # a trial has a quarter of the steps
EVERY, RARELY = 30, 65  # H; in 2 bits the second sends 1,000 times fewer bytes
ALONE = 120
ROWS = 16  # of a replica, in a step
SEQ_LEN = 128
EVAL_ROWS = 1024
WARMUP = 78  # updates in which the learning rate rises
TRIAL_SEED = 1000
SIZES = {"0.1M": 40, "0.3M": 96, "1M": 216, "3M": 416}  # the width of the only layer
SIZE = "0.3M"
SCALED = (  # counts of steps that are as much shorter as a run is
    "optim.warmup_steps",
    "parallel.local.alone",
    "parallel.local.first",
    "parallel.exchange.warmup_steps",
)


class Dim(NamedTuple):
    """A field that is tuned: a ladder of values through the one to begin from."""

    field: str
    begin: float
    ladder: str = "rate"  # times 2 a rung; root: times its root; decay: 1 - x halves

    def value(self, rung: int) -> float:
        """Return the value at so many rungs above the beginning, to 4 digits."""
        if self.ladder == "decay":
            found = max(1 - (1 - self.begin) * 2.0**-rung, 0.0)
        else:
            found = self.begin * (2.0 if self.ladder == "rate" else 2**0.5) ** rung
        return float(f"{found:.4g}")

    def exists(self, rung: int) -> bool:
        """Tell whether the rung is another value than the one below it."""
        return self.ladder != "decay" or self.value(rung) > 0 or self.value(rung + 1) > 0


def learning_rate(begin: float) -> Dim:
    return Dim("optim.learning_rate", begin)


ADAM = learning_rate(4e-3)
B1 = Dim("optim.b1", 0.9, "decay")
B2 = Dim("optim.b2", 0.95, "decay")
OUTER_RATE = Dim("parallel.local.learning_rate", 0.7, "root")
OUTER_MOMENTUM = Dim("parallel.local.momentum", 0.8, "decay")


class Entrant(NamedTuple):
    """A member: what it sets, and what is tuned of it."""

    overrides: Member
    dims: tuple[Dim, ...] = (ADAM, B1, B2)
    islands: tuple[int, ...] = (2,)
    tuned_as: str = ""  # the member whose values it takes; "": it is tuned by itself
    devices: int = 1  # of one island


MOMENTUM: Member = {"optim.name": "momentum", "optim.weight_decay": 0.0}
BY_MOMENTUM = (learning_rate(0.25), B1)
SGD: Member = {"optim.name": "sgd", "optim.weight_decay": 0.0}
DGC = {"keep": 0.01, "momentum": 0.9, "warmup_steps": 156}
OWN_MOMENTUM = Dim("parallel.exchange.momentum", 0.9, "decay")
OUTER = (ADAM, OUTER_RATE, OUTER_MOMENTUM)
ALL = (2, 4, 8)
FLOAT32: Member = {"parallel.strategy": "shard_map"}
MUON: Member = {"optim.name": "muon"}


def delay(steps: int, warmup: int) -> Member:
    return FLOAT32 | {"parallel.exchange.delay": steps, "optim.warmup_steps": warmup}


def sparseloco(every: int) -> Member:
    """Sarfi et al. 2025: 64 elements of each 4,096, no outer momentum."""
    more = {"parallel.exchange.keep": 1 / 64, "parallel.exchange.feedback_decay": 0.95}
    return local("diloco", every, "chunk_top_k", momentum=0.0) | more


def muloco(every: int) -> Member:
    """Therien et al. 2025: Muon inside, 2 bits with error feedback between."""
    return local("diloco", every, "int2") | MUON


BASE = "float32"
# The most telling first. Optimizers are AdamW where a name does not say another.
MEMBERS: dict[str, Entrant] = {
    BASE: Entrant(FLOAT32, islands=ALL),
    "int8": Entrant(codec("int8")),
    "diloco-30": Entrant(local("diloco", EVERY), OUTER, ALL),
    "muloco-65": Entrant(muloco(RARELY), OUTER, ALL),
    "diloco-65-int2": Entrant(local("diloco", RARELY, "int2"), OUTER),
    "sparseloco-30": Entrant(sparseloco(EVERY), (ADAM, OUTER_RATE, B2), ALL),
    "muloco-30": Entrant(muloco(EVERY), OUTER),
    "float32, muon": Entrant(FLOAT32 | MUON),
    "diloco-30, one alone": Entrant(local("diloco", EVERY, alone=ALONE), OUTER),
    "int4": Entrant(codec("int4")),
    "int2": Entrant(codec("int2")),
    "delay-1": Entrant(delay(1, WARMUP)),
    "delay-4": Entrant(delay(4, WARMUP)),
    "top_k-1%": Entrant(codec("top_k", keep=0.01)),
    "power_sgd-4": Entrant(codec("power_sgd", rank=4)),
    "sign": Entrant(codec("sign")),
    "dgc-1%": Entrant(codec("dgc", **DGC), (ADAM, OWN_MOMENTUM, B2)),
    "local_sgd-30": Entrant(local("local_sgd", EVERY), islands=ALL),
    "streaming_diloco-30": Entrant(local("streaming_diloco", EVERY), OUTER, ALL),
    # Where their papers put them.
    "float32, momentum": Entrant(FLOAT32 | MOMENTUM, BY_MOMENTUM),
    "top_k-1%, momentum": Entrant(codec("top_k", keep=0.01) | MOMENTUM, BY_MOMENTUM),
    "power_sgd-4, momentum": Entrant(codec("power_sgd", rank=4) | MOMENTUM, BY_MOMENTUM),
    "sign, sgd": Entrant(codec("sign") | SGD, (learning_rate(1.0),)),
    "dgc-1%, sgd": Entrant(
        codec("dgc", **DGC, clip=1.0) | SGD, (learning_rate(0.25), OWN_MOMENTUM)
    ),
    "delay-1, no warm-up": Entrant(delay(1, 0)),
    "diloco-30, 2 devices an island": Entrant(
        local("diloco", EVERY, inner="shard_map"), tuned_as="diloco-30", devices=2
    ),
}
FLOAT32S = (BASE, "float32, muon", "float32, momentum")  # each with its optimizer
FRONTIER = (BASE, "float32, muon", "diloco-65-int2", "muloco-65")  # at all sizes
QUICK = (BASE, "int8", "diloco-30", "muloco-65")


def base_config(size: str, islands: int, folder: str) -> Experiment:
    return Experiment(
        steps=STEPS,
        data=DataConfig(
            source="jsonl",
            path=folder,
            validation_share=0.02,
            vocab_size=1024,
            seq_len=SEQ_LEN,
            batch_size=ROWS * islands,
        ),
        # With the embedding as its head, it learns to look back at a step that hangs on
        # the seed.
        model=replace(one_layer(SIZES[size]), tied=False),
        optim=OptimConfig(warmup_steps=WARMUP),
    )


def member_config(
    name: str,
    size: str,
    islands: int,
    seed: int,
    values: Member,
    folder: str,
    trial: bool = False,
) -> Experiment:
    """Return the config of a run, or of a trial, with these values of the tuned fields."""
    entrant = MEMBERS[name]
    degrees = {"data": islands}
    if entrant.devices > 1:
        degrees = {"slice": islands, "data": entrant.devices}
    given = {f"parallel.{axis}": degree for axis, degree in degrees.items()}
    given |= entrant.overrides | values | {"seed": seed}
    config = fields.override(base_config(size, islands, folder), given)
    return shorter(config, TRIAL_SHARE) if trial else config


def shorter(config: Experiment, times: int) -> Experiment:
    """Return the config of a run of so many times fewer steps."""
    flat = fields.flatten(config)
    counts = {name: flat[name] // times for name in ("steps", *SCALED)}
    usual = fields.flatten(Experiment())
    return fields.override(
        config,
        {
            name: count
            for name, count in counts.items()
            if name in ("steps", "optim.warmup_steps") or flat[name] != usual[name]
        },
    )


def origins(size: str, islands: int) -> list[tuple[str, int]]:
    """Return the cells, (size, islands), from whose values those of a cell come.

    None: its search begins from the usual values. One: its search begins from what was
    found there. Two: it has no search, and takes what was found with 2 islands of its
    size, and what more islands changed at SIZE.
    """
    if islands != ALL[0]:
        found = [(size, ALL[0]), (SIZE, islands)]
        return found[:1] if size == SIZE else found
    names = list(SIZES)
    index, home = names.index(size), names.index(SIZE)
    step = (index < home) - (index > home)
    return [(names[index + step], islands)] if step else []


def dims_of(member: str, begin: Member) -> tuple[Dim, ...]:
    """Return what is tuned: the learning rate alone where a search begins from values."""
    dims = MEMBERS[member].dims
    return (dims[0]._replace(begin=begin[dims[0].field]),) if begin else dims


def cells(names: list[str]) -> list[tuple[str, int]]:
    """Return the cells, (member, islands): 2 islands of all before 4 and 8 of any."""
    return [
        (name, islands)
        for islands in ALL
        for name in names
        if islands in MEMBERS[name].islands
    ]


def frontier() -> list[tuple[str, str, int]]:
    """Return the cells of the frontier, (member, size, islands); 3M has 2 islands only."""
    return [
        (name, size, islands)
        for size in SIZES
        for name, islands in cells(list(FRONTIER))
        if size != "3M" or islands == ALL[0]
    ]


def tokens_of(islands: int, steps: int) -> int:
    """Return the tokens that all islands together train on."""
    return steps * ROWS * islands * SEQ_LEN
