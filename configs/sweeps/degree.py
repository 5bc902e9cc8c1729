"""What changes with the data-parallel degree? 1 to 8 devices, at equal tokens.

Command:  python -m experiments.sweep --sweep=configs/sweeps/degree.py \
              --workdir=runs/degree
"""

from configs.sweeps.combine import Member, at_tokens, degrees, product

TOKENS, SEQ_LEN = 50_000, 128


def get_sweep() -> list[Member]:
    fixed = {"config": "configs/tiny.py", "parallel.strategy": "shard_map"}
    fixed |= {"model.width": 64, "model.num_layers": 2}  # small, so that it is quick
    members = product(degrees(1, 2, 4, 8), [{"data.batch_size": 32}])
    return product([fixed], at_tokens(TOKENS, members, SEQ_LEN))
