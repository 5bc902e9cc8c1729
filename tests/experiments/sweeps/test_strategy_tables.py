"""The tables of strategies, from made-up measurements whose answers are simple."""

from experiments.sweeps.strategy_tables import strategy_tables


def program(member: str, sent_bytes: float) -> dict:
    sizes = {"sent_bytes": sent_bytes, "state_bytes": 2e6, "temporary_bytes": 3e6}
    return {"measure": "program", "member": member} | sizes


def loss(member: str, seed: int, loss: float) -> dict:
    return {"measure": "loss", "member": member, "seed": seed, "steps": 9, "loss": loss}


LINES = [
    program("shard_map", 8e6), program("fsdp", 8e6), program("int8", 2e6),
    program("diloco-50", 8e3),
    loss("shard_map", 0, 4.0), loss("shard_map", 1, 2.0), loss("int8", 0, 4.01),
    loss("diloco-50", 0, 5.0), loss("diloco-50", 1, 4.0),
    {"measure": "time", "member": "fsdp", "ratio": 1.5},
]  # fmt: skip


def test_losses_are_compared_over_the_seeds_that_both_have():
    found = strategy_tables(LINES)
    base = "| shard_map | 2 | 3.0000 ± 12.7062 | +0.00% | 8 MB | 1 | 2 MB | 3 MB |  |"
    assert base in found["exact-9"]
    assert "| int8 | 1 | 4.0100 | +0.25% | 2 MB | 4 |" in found["compressed-9"]
    assert "| diloco-50 | 2 | 4.5000 ± 6.3531 | +50.00% | 8 kB | 1000 |" in found["local-9"]
    assert "`int8` sends the least: 4 times fewer" in found["verdict-9"]
    assert "`diloco-50` learns the most: +50.00% at 1000 times" in found["verdict-9"]


def test_a_member_that_was_not_trained_shows_what_it_costs():
    row = "| fsdp |  |  |  | 8 MB | 1 | 2 MB | 3 MB | 1.50 |"
    assert row in strategy_tables(LINES)["exact-9"]
