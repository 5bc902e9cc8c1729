"""Every strategy, codec and way to exchange rarely, with equal tokens, on 8 devices.

Command:  python -m experiments.sweep --sweep=configs/sweeps/strategies.py \
              --workdir=runs/strategies

MEMBERS maps a name to its overrides. The studies strategies, wire and links
(experiments/studies) measure members of the same table.
"""

from typing import Any

from configs.sweeps.combine import Member, product

BASE = "shard_map"  # float32 all-reduce; all others are compared with it


def codec(name: str, **fields: Any) -> Member:
    options = {f"parallel.exchange.{key}": value for key, value in fields.items()}
    return {
        "parallel.strategy": "shard_map",
        "parallel.exchange.codec": name,
    } | options


def local(strategy: str, every: int, codec: str = "none", **fields: Any) -> Member:
    options = {f"parallel.local.{key}": value for key, value in fields.items()}
    return {
        "parallel.strategy": strategy,
        "parallel.local.every": every,
        "parallel.exchange.codec": codec,
    } | options


SYNCHRONOUS: dict[str, Member] = (
    {
        name: {"parallel.strategy": name}
        for name in ("shard_map", "jit", "pmap", "zero1", "zero1_whole", "zero2", "fsdp")
    }
    | {
        "hsdp": {"parallel.strategy": "hsdp", "parallel.data": 2, "parallel.fsdp": 4},
        "tensor": {"parallel.strategy": "tensor", "parallel.data": 2, "parallel.tensor": 4},
        "hybrid": {
            "parallel.strategy": "hybrid",
            "parallel.data": 2,
            "parallel.fsdp": 2,
            "parallel.tensor": 2,
        },
    }
    | {
        name: {
            "parallel.strategy": name,
            "parallel.data": 4,
            "parallel.stage": 2,
            "parallel.accumulation": 4,
        }
        for name in ("gpipe", "1f1b", "interleaved")
    }
)

COMPRESSED: dict[str, Member] = {
    **{
        name: {
            "parallel.strategy": "shard_map",
            "parallel.exchange.algorithm": name,
        }
        for name in ("ring", "tree", "halving_doubling", "all_to_all", "all_gather", "p2p")
    },
    "bfloat16": codec("bfloat16"),
    "int8": codec("int8"),
    "int4": codec("int4"),
    "int2": codec("int2"),
    "ternary": codec("ternary"),
    "sign": codec("sign"),
    "majority_vote": codec("majority_vote"),
    "top_k-1%": codec("top_k", keep=0.01),
    "top_k-0.1%": codec("top_k", keep=0.001),
    "chunk_top_k-1%": codec("chunk_top_k", keep=0.01),
    "random_k-1%": codec("random_k", keep=0.01),
    "dgc-1%": codec("dgc", keep=0.01, momentum=0.9, warmup_steps=40),
    "power_sgd-4": codec("power_sgd", rank=4),
    "power_sgd-1": codec("power_sgd", rank=1),
    "delay-1": {"parallel.strategy": "shard_map", "parallel.exchange.delay": 1},
    "delay-4": {"parallel.strategy": "shard_map", "parallel.exchange.delay": 4},
}

LOCAL: dict[str, Member] = {
    "local_sgd-8": local("local_sgd", 8),
    "post_local_sgd-8": local("post_local_sgd", 8, first=50),
    **{f"diloco-{h}": local("diloco", h) for h in (50, 100, 200, 500)},
    **{f"diloco-{h}-int4": local("diloco", h, "int4") for h in (50, 100, 200, 500)},
    "diloco-50-int8": local("diloco", 50, "int8"),
    "diloco-50-int2": local("diloco", 50, "int2"),
    "diloco-50-sign": local("diloco", 50, "sign"),
    # Sarfi et al. 2025: 64 elements of each 4,096; the residual stands for outer momentum.
    "sparseloco-50": local("diloco", 50, "chunk_top_k", learning_rate=1.0, momentum=0.0)
    | {"parallel.exchange.keep": 1 / 64, "parallel.exchange.feedback_decay": 0.95},
    # Therien et al. 2025: Muon inside, at the rate that it has in every step.
    "muloco-50": local("diloco", 50, "int2") | {"optim.name": "muon"},
    "streaming_diloco-50": local("streaming_diloco", 50),
    "streaming_diloco-50-int4": local("streaming_diloco", 50, "int4"),
}

MEMBERS = SYNCHRONOUS | COMPRESSED | LOCAL


def get_sweep() -> list[Member]:
    fixed = {"config": "configs/tiny.py", "devices": 8, "steps": 200}
    return product([fixed], list(MEMBERS.values()))
