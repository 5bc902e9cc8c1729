"""How many devices, and how large a batch? Each degree with each batch, at equal tokens.

Command:  python -m experiments.sweep --sweep=configs/sweeps/degree_batch.py \
              --workdir=runs/sweep
"""

from configs.sweeps.combine import Member, at_tokens, degrees, distinct, product

TOKENS, SEQ_LEN = 200_000, 128
BATCH, RATE = 32, 3e-3  # the learning rate that suits this batch size


def get_sweep() -> list[Member]:
    batches = [
        {"data.batch_size": size, "optim.learning_rate": round(rate, 7)}
        for size in (8, 32, 128)
        # Linear: Goyal et al. 2017. Square root: Malladi et al. 2022, for Adam.
        for rate in (RATE * (size / BATCH) ** 0.5, RATE * size / BATCH)
    ]
    members = product(degrees(1, 2, 4, 8), distinct(batches))
    fixed = {"config": "configs/tiny.py", "parallel.strategy": "shard_map"}
    return product([fixed], at_tokens(TOKENS, members, SEQ_LEN))
