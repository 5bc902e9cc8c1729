"""The league: its search, its counts of bytes, its tables and its text."""

import itertools
import json

import jax
import pytest

from configs import fields
from experiments.run.check import check
from experiments.studies.league import corpus, picture, search, tables
from experiments.studies.league.members import (
    BASE,
    MEMBERS,
    SIZE,
    STEPS,
    Dim,
    cells,
    frontier,
    member_config,
)
from experiments.studies.league.search import WHOLE, following, values_at
from experiments.studies.league.sent import run_bytes
from experiments.studies.league.training import trained
from experiments.sweeps.pages import tables as places
from experiments.sweeps.results import read
from parallel.config import ParallelConfig
from parallel.exchange.config import ExchangeConfig
from parallel.local import LocalConfig
from tests.experiments.runs import ROOT
from tests.parallel.test_local import SGD
from tests.parallel.toy import batches, toy_learner, toy_program


def test_ladders_are_of_the_values_that_they_say():
    rate, root, decay = (
        Dim("", 0.4), Dim("", 0.7, "root"), Dim("", 0.8, "decay")
    )  # fmt: skip
    assert [rate.value(k) for k in (-2, 0, 3)] == [0.1, 0.4, 3.2]
    assert [root.value(k) for k in (-2, 0, 1, 2)] == [0.35, 0.7, 0.9899, 1.4]
    assert [decay.value(k) for k in (-3, -2, 0, 1, 2)] == [0, 0.2, 0.8, 0.9, 0.95]
    assert [decay.exists(k) for k in (-4, -3, -2, 5)] == [False, True, True, True]


def search_all(dims, loss) -> dict:
    """Run a search to its end; each time all that is known of it is what was tried."""
    tried: dict = {}
    while (point := following(dims, dict(tried))) is not None:
        assert point not in tried
        tried[point] = loss(point)
    return tried


def test_the_search_finds_the_lowest_point_or_goes_on():
    dims = (Dim("a", 1.0), Dim("b", 1.0, "root"), Dim("c", 0.9, "decay"))
    for lowest in itertools.product((-1, 0, 1), repeat=3):
        tried = search_all(
            dims, lambda p, x=lowest: sum((a - b) ** 2 for a, b in zip(p, x, strict=True))
        )
        assert WHOLE.least <= len(tried) <= WHOLE.most
        assert search.best_of(tried) == lowest or len(tried) == WHOLE.most
    # A bowl around the beginning is known after as many trials as all members have.
    near = search_all(dims, lambda p: sum(x * x for x in p))
    assert len(near) == WHOLE.least and search.at_an_end(dims, near) == []
    # Where the loss always falls, the search goes on and says that it has not ended.
    far = search_all(dims[:1], lambda p: -float(p[0]))
    assert len(far) == WHOLE.most and search.at_an_end(dims[:1], far) == ["a"]
    # What is not finite is never the best.
    blown = search_all(dims[:1], lambda p: None if p[0] >= 0 else float(-p[0]))
    assert search.best_of(blown) == (-1,)


def test_every_cell_has_a_config_and_its_share_of_the_protocol(tmp_path):
    (tmp_path / "documents.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')
    for member, entrant in MEMBERS.items():
        # Values that a search may try can be set.
        values = values_at(entrant.dims, (1,) * len(entrant.dims))
        whole, trial = (
            member_config(member, SIZE, 2, 0, values, str(tmp_path), short)
            for short in (False, True)
        )
        fields.check(trial)
        assert (whole.steps, trial.steps) == (STEPS, STEPS // 4)
        assert whole.optim.warmup_steps // 4 == trial.optim.warmup_steps
        assert whole.parallel.local.alone // 4 == trial.parallel.local.alone
        assert whole.parallel.local.every == trial.parallel.local.every
    assert cells([BASE, "int8"]) == [(BASE, 2), ("int8", 2), (BASE, 4), (BASE, 8)]
    assert ("muloco-65", "3M", 2) in frontier() and (BASE, "3M", 4) not in frontier()
    check(member_config("muloco-65", "1M", 8, 0, {}, str(tmp_path)))


def compiled(strategy: str, exchange: ExchangeConfig, local: LocalConfig, steps: int):
    learner = toy_learner(SGD)._replace(num_steps=steps)
    program = toy_program(strategy, learner, data=4, exchange=exchange, local=local)
    step = program.step.lower(program.abstract, program.place(batches(1)[0])).compile()
    config = member_config(BASE, SIZE, 4, 0, {}, "")
    config.steps = steps
    config.parallel = ParallelConfig(strategy, data=4, exchange=exchange, local=local)
    size = sum(x.size for x in jax.tree.leaves(program.abstract_portable.params))
    return run_bytes(config, step, program.mesh), size


def test_bytes_are_those_of_the_whole_run():
    """By hand, of 4 replicas; metrics are the few bytes more."""
    local = LocalConfig(every=3, alone=2)
    sent, size = compiled("diloco", ExchangeConfig(), local, 9)
    # Meetings after 5 and 8 steps and at the end, 2 x 3/4 of the parameters each.
    expected = 3 * 4 * size * 2 * 3 / 4
    assert sent.bytes_warm == 4 * size and sent.bytes_fast == 0
    assert expected < sent.bytes_slow - sent.bytes_warm < expected + 3 * 200
    assert sent.bytes_uploaded == pytest.approx(sent.bytes_slow)

    exchange = ExchangeConfig(codec="dgc", keep=0.01, warmup_steps=6)
    sent, _ = compiled("shard_map", exchange, LocalConfig(), 20)
    # Two steps of each of 4 stages, whose shares fall from 1/4 by equal factors, then 12
    # steps; an element has 4 bytes and 2 of its place, and is sent to 3 others.
    shares = [0.25 * (0.01 / 0.25) ** (i / 4) for i in range(4)]
    warm = sum(2 * 3 * 6 * round(share * size) for share in shares)
    late = 12 * 3 * 6 * round(0.01 * size)
    assert sent.bytes_warm == warm
    assert warm + late < sent.bytes_slow < warm + late + 20 * 200
    metrics = sent.bytes_slow - warm - late
    assert sent.bytes_uploaded == pytest.approx((warm + late) / 3 + metrics)


def test_islands_of_several_devices_train(tmp_path, monkeypatch):
    """They tell a value of each metric for each island, the noise scale's too."""
    monkeypatch.setattr(corpus, "PACKAGES", ("optax",))
    corpus.write_corpus(tmp_path)
    member = "diloco-30, 2 devices an island"
    config = member_config(member, "0.1M", 2, 0, {}, str(tmp_path))
    config.steps, config.optim.warmup_steps, config.parallel.local.every = 18, 2, 6
    figures, costs = trained(config)
    assert figures["loss"] < 7 and figures["tokens"] == 18 * 2 * 16 * 128
    # An island sends all parameters at each of three meetings, and inside, in each step,
    # each of its two devices does.
    size = 4 * costs["params"]
    assert 3 * size < costs["bytes_slow"] < 3.1 * size
    assert 18 * 2 * size < costs["bytes_fast"] < 18 * 2.01 * size
    assert [step for step, _ in costs["noise"]] == [12, 15, 18]


def line(member: str, islands: int, seed: int, loss, sent: float, **more) -> dict:
    return {
        "kind": "run", "member": member, "size": SIZE, "islands": islands, "seed": seed,
        "loss": loss, "bytes_slow": sent, "bytes_uploaded": sent, "bytes_warm": 0,
        "steps": STEPS, "tokens": 100, "core_seconds": 1.0, "params": 10, "text": "t",
    } | more  # fmt: skip


def trial(member: str, point: tuple, loss, **more) -> dict:
    head = {"kind": "trial", "member": member, "size": SIZE, "islands": 2}
    values = values_at(MEMBERS[member].dims, point)
    head |= {"values": values, "tokens": 9, "steps": STEPS // 4}
    return head | {"point": list(point), "loss": loss} | more


def test_other_cells_take_the_values_of_those_before_them():
    def found(size: str, islands: int) -> float:
        return tables.tuned_values(lines, BASE, size, islands)["optim.learning_rate"]

    def tried(size: str, islands: int, rung: int) -> dict:
        return trial(BASE, (rung, 0, 0), 1.0, size=size, islands=islands)

    lines = [tried(SIZE, 2, 1)]
    sizes = itertools.product(("0.1M", SIZE, "1M"), (2, 4, 8))
    assert {found(*cell) for cell in [*sizes, ("3M", 2)]} == {8e-3}
    lines += [tried(SIZE, 8, 2), tried("1M", 2, -1)]
    # Of 1M with 8 islands: half of 4e-3 with 2, and 8 islands have twice the rate of 2.
    rates = [found(*cell) for cell in ((SIZE, 8), ("1M", 2), ("1M", 8), ("3M", 2))]
    assert rates == [1.6e-2, 2e-3, 4e-3, 2e-3]
    assert found("1M", 4) == 2e-3 and found("0.1M", 8) == 1.6e-2


def test_the_tables_say_what_the_lines_say(tmp_path):
    lines = [
        line(BASE, 2, 0, 2.0, 1e6), line(BASE, 2, 1, 4.0, 1e6),
        line("int8", 2, 0, 2.02, 2.5e5), line("int8", 2, 1, 4.12, 2.5e5),
        line("muloco-65", 2, 0, 2.2, 1e3), line("sign", 2, 0, None, 1e5),
        line("float32, muon", 2, 0, 2.5, 1e6),
        line("int4", 2, 5, 1.0, 1.0),  # of a seed that float32 has not
        line("int2", 2, 0, 1.0, 1.0, steps=7),  # of another protocol
        trial("int8", (0, 0, 0), 3.0), trial("int8", (1, 0, 0), 2.4),
        trial("int8", (2, 0, 0), None),
    ]  # fmt: skip
    page, results = ROOT / "docs" / "league.md", ROOT / "results" / "league.jsonl"
    filled = {k: v.strip() for k, v in tables.league_tables(read(results)).items()}
    assert places(page) == filled
    found = tables.league_tables(lines)
    shown = {row.split("|")[1].strip(): row for row in found["league-2"].splitlines()[2:]}
    assert set(shown) == {BASE, "int8", "float32, muon", "muloco-65", "sign"}
    assert "+2.00% (+1.00% to +3.00%)" in shown["int8"] and "| 4 |" in shown["int8"]
    assert "not finite" in shown["sign"] and "| 1000 |" in shown["muloco-65"]
    # Against float32, and against float32 with Muon.
    muloco = [cell.strip() for cell in shown["muloco-65"].split("|")]
    assert muloco[4:6] == ["+10.00%", "-12.00%"] and shown["int8"].split("|")[5] == "  "
    told = [cell.strip() for cell in found["frontier"].splitlines()[2].split("|")]
    assert told[6:8] == ["+10.00% at 1000", "-12.00%"]
    assert found["league-4"] == tables.NOTHING
    assert tables.tuned_values(lines, "int8", SIZE, 2)["optim.learning_rate"] == 8e-3
    assert "-20.00%" in found["tuning"] and "goes on" in found["tuning"]
    # Two cores, and a hundredth of a second of one for each token.
    tokens = sum(STEPS * 16 * 128 * islands for _, islands in cells(list(MEMBERS)))
    (told,) = (row for row in found["cost"].splitlines() if "seed 1" in row)
    assert f"| {tokens / 200 / 3600:.1f} |" in told and "| 2 |" in told
    chosen = [row.split("|") for row in found["choice"].splitlines()[2:]]
    of_all, under_adamw = ([row[at].strip() for row in chosen] for at in (3, 6))
    assert of_all == [BASE, "int8", "int8", *["muloco-65"] * 8]
    assert under_adamw == [BASE, "int8", "int8", *[""] * 8]
    rows = tables.rows_of(lines, SIZE, 2)
    assert [row.member for row in picture.front(rows)] == ["muloco-65", "int8", BASE]
    picture.draw_all(lines, tmp_path / "league.md")
    for name in ("league.png", "league-sizes.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert "-2.913%" in tables.difference(lines, line("int8", 2, 1, 4.0, 1.0))
    assert "none in the results" in tables.difference(lines, line("int8", 2, 9, 4.0, 1.0))


def test_the_arithmetic_of_a_thousandth():
    """By hand: 4 P bytes for a broadcast, 2.0625 bits of P for a meeting."""
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in tables.arithmetic_table().splitlines()[2:]
    ]
    told = {row[0]: row[1:] for row in rows}
    assert told["1,000"] == ["4 P", "15", "67", "0", "never"]
    assert told["2,500"] == ["10 P", "38", "66", "23", "109"]


def test_the_text_is_the_same_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "PACKAGES", ("optax",))
    first = corpus.write_corpus(tmp_path / "a")
    assert (
        first == corpus.write_corpus(tmp_path / "b") == corpus.write_corpus(tmp_path / "a")
    )
    documents = (tmp_path / "a" / "documents.jsonl").read_text().splitlines()
    texts = [json.loads(each)["text"] for each in documents]
    assert len(texts) > 50 and any("def adamw(" in text for text in texts)
    monkeypatch.setattr(corpus, "PACKAGES", ("no-such-package",))
    with pytest.raises(ValueError, match="no-such-package is not installed"):
        corpus.write_corpus(tmp_path / "c")
