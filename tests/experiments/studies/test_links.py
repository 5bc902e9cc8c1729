"""The grid of links: the fit finds the model that made the figures; tables; the cells."""

import math
import random

import pytest

from experiments.processes.network.link import Link
from experiments.studies.links import tables
from experiments.studies.links.cells import FITTED, GRID, HOSTS, QUICK, TIMED, Cell, apply
from experiments.studies.links.model import AlphaBeta, fit, pays_at
from tests.experiments.runs import run

OTHERS = {"ledger_bytes": 900_000, "batch_size": 4, "congestion": "reno"}


def test_the_fit_finds_the_model_that_made_the_figures():
    rng = random.Random(0)
    for _ in range(20):
        # Seconds, round trips and bytes; some are nothing.
        true = AlphaBeta(rng.random(), rng.choice([0, 6, 40]), rng.choice([0, 1e3, 5e6]))
        made = {cell: true.step(cell) for cell in FITTED}
        found = fit(made)
        for cell in GRID:
            assert found.step(cell) == pytest.approx(true.step(cell), rel=1e-6)
    # By hand: 0.1 s, 6 round trips of 50 ms, 1 MB at 10 Mbit/s.
    assert AlphaBeta(0.1, 6, 1e6).step(Cell("all", 50, 10, 0)) == pytest.approx(1.2)


def test_every_pair_of_hosts_gets_the_link_of_its_cell():
    class Net:
        def set_links(self, link):
            self.links = {(a, b): link for a in range(HOSTS) for b in range(a + 1, HOSTS)}

        def set_link(self, a, b, link):
            assert (a, b) in self.links
            self.links[a, b] = link

        def set_rate(self, rate):
            self.rate = rate

    net = Net()
    apply(net, Cell("all", 50, 10, 0.1))
    assert net.rate == 10e6
    assert set(net.links.values()) == {Link(delay=0.025, loss=0.001)}
    apply(net, Cell("between", 1, 10, 0))  # nothing is left of the cell before
    assert net.rate == math.inf
    bad = {pair for pair, link in net.links.items() if link != Link()}
    assert {net.links[pair] for pair in bad} == {Link(delay=0.0005, rate=10e6)}
    # What hierarchical sums inside a slice, process 0 with 1 and 2 with 3, stays fast.
    assert set(net.links) - bad == {(0, 1), (2, 3)}
    apply(net, Cell("one", 0, 0, 1))
    assert [pair for pair, link in net.links.items() if link != Link()] == [(0, 1)]


def test_the_grid_holds_what_the_tables_and_the_fit_need():
    assert len(GRID) == len(set(GRID)) and len(QUICK) == len(set(QUICK))
    assert set(FITTED) <= set(QUICK) <= set(GRID)
    made = [
        {"member": name, **cell._asdict(), "seconds": [1.0] * 4, **OTHERS}
        for name in TIMED
        for cell in GRID
    ]
    found = tables.link_tables(made, [])
    for name in ("links-far", "links-rate", "links-loss", "links-some", "links-model"):
        _, _, *rows = found[name].splitlines()
        assert len(rows) == len(TIMED)
        assert all(cell.strip() for row in rows for cell in row.strip("|").split("|"))


def test_the_tables():
    """A step of `ring` is 0.1 s + 6 round trips + 1 MB; one cell off by a tenth."""
    true = AlphaBeta(0.1, 6, 1e6)
    off = Cell("all", 150, 0, 0)
    lines = [
        {"member": "ring", **cell._asdict(), **OTHERS}
        | {"seconds": [9.0, true.step(cell) / (1.1 if cell == off else 1), 0.0]}
        for cell in (*FITTED, off, Cell("all", 10, 0, 0))
    ]
    lines.append({"check": "round trip, ms", "ideal": 10, "found": 10.2, "fits": True})
    # Every 4th step of a local method has a meeting; its own H is 8.
    far = Cell("all", 50, 0, 0)._asdict()
    lines.append(
        {"member": "local_sgd-8", **far, "seconds": [1.0, 1.0, 1.0, 5.0], **OTHERS}
    )
    assert [tables.ledger_bytes(x) for x in (lines[0], lines[-1])] == [900_000, 450_000]
    lines.append({"member": "ring", **far, "seconds": [7.0], **OTHERS, "congestion": "x"})
    curves = [
        {"member": name, "steps": 20, "loss": 2.0, "curve": [[10, 4.0]]}
        for name in ("ring", "local_sgd-8")
    ]
    found = tables.link_tables(lines, curves)
    assert "| ring | 0.1000 | 6.0 | 1.000 | 0.9000 | 2 | 5% | 10% |" in found["links-model"]
    assert "| local_sgd-8 |  |  |  | 1.500 |  |" in found["links-far"]
    assert "| ring | 20 | 2 |  | 18 | 8 | 24 |  |" in found["links-to-loss"]
    assert "| local_sgd-8 | 20 |  |  |  | 30 |  |  |" in found["links-to-loss"]
    assert "| ring, reno |" in found["links-loss"]
    assert "| ring, x |  |  |  | 7.000 |" in found["links-loss"]
    assert "| round trip, ms | 10 | 10.2 | yes |" in found["emulator"]


def test_seconds_to_two_losses_and_the_rates_that_pay():
    """A step of float32 takes 0.1 s and 1 MB, of int8 0.1 s and 0.25 MB."""
    sides = {"shard_map": AlphaBeta(0.1, 0, 1e6), "int8": AlphaBeta(0.1, 0, 0.25e6)}
    lines = [
        {"member": name, **cell._asdict(), **OTHERS, "seconds": [side.step(cell)]}
        for name, side in (sides | {"p2p": sides["int8"]}).items()
        for cell in (*FITTED, Cell("all", 0, 100, 0))
    ]
    curves = [
        {"member": "shard_map", "steps": 20, "loss": 2.0, "curve": [[10, 4.0]]},
        {"member": "int8", "steps": 40, "loss": 2.0, "curve": [[20, 4.0], [30, 3.0]]},
        {"member": "p2p", "steps": 40, "loss": 3.0, "curve": [[20, 4.0]]},
    ]
    text = tables.link_tables(lines, curves)["links-to-loss"]
    all_reach, some_reach = text.split("To a validation loss of ")[1:]
    assert all_reach.startswith("3.000") and some_reach.startswith("2.000")
    # 15 steps against 30: 1.5 s + 120 Mbit and 3 s + 60 Mbit are equal at 40 Mbit/s.
    assert "| shard_map | 15 | 2 | 3 | 14 | 2 | 14 |  |" in all_reach
    assert "| int8 | 30 | 3 | 4 | 9 | 3 | 9 | below 40 |" in all_reach
    # 20 steps against 40: 2 s + 160 Mbit and 4 s + 80 Mbit.
    assert "| int8 | 40 | 4 | 5 | 12 | 4 | 12 | below 40 |" in some_reach
    assert "p2p" not in some_reach


@pytest.mark.parametrize(
    ("steps", "one", "said"),
    [
        (10, AlphaBeta(1, 0, 0.5e6), "all"),
        (10, AlphaBeta(2, 0, 2e6), "none"),
        (10, AlphaBeta(1, 0, 1e6), "none"),  # as the base
        (10, AlphaBeta(0.5, 0, 2e6), "above 16"),
    ],
)
def test_the_rates_at_which_a_member_pays(steps, one, said):
    assert pays_at(one, steps, AlphaBeta(1, 0, 1e6), 10) == said


def test_mistakes_are_refused():
    for module, flag, said in [
        ("studies.partition", "--cuts=all", "--cuts=all: choose among 0 and 1"),
        ("studies.links", "--only=rings", "--only=rings: choose among shard_map"),
        ("studies.transfer", "--only=mail", "--only=mail: choose among streams"),
    ]:
        result = run(module, flag, check=False)
        assert result.returncode == 2 and said in result.stderr, result.stderr


def test_the_table_of_cut_links():
    line = {
        "strategy": "jit",
        "deadline": "20",
        "jax": "1",
        "cut": "0 and 1",
        "codes": [1, -6, None],
    }
    stays = line | {"ended": [31.24, 30.6, None], "said": ["a", "b|c", ""], "more_steps": 1}
    mends = line | {"ended": [None] * 3, "said": ["", "", ""], "more_steps": 90}
    table = tables.partition_table([stays, mends]).splitlines()
    start = "| jit | 20 | 1 | 0 and 1 "
    assert table[2] == rf"{start}| ends after 31 s | ends after 31 s | waits | b\|c |"
    assert table[3] == f"{start}| goes on | goes on | goes on |  |"
