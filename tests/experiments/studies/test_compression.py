"""The tables of the study of smaller models, from lines whose answers are known."""

from experiments.studies.compression.members import (
    MEMBERS,
    MODELS,
    frontier_config,
    way_config,
)
from experiments.studies.compression.tables import MISSING, tables


def way(member: str, seed: int, loss: float, steps: int = 400):
    sizes = {"bytes": 2e6, "nonzero": 5e5}
    head = {"study": "ways", "member": member, "seed": seed, "steps": steps}
    return head | {"loss": loss} | sizes


def run(model: str, devices: int, sent: float, curve):
    head = {"study": "frontier", "member": "", "model": model, "devices": devices}
    return head | {"seed": 0, "steps": 40, "sent_bytes": sent, "curve": curve}


def link(model: str, devices: int, seconds: list[float]):
    head = {"study": "links", "model": model, "devices": devices, "rate": 10.0}
    return head | {"seconds": seconds}


CURVE = [[10, 5.0], [20, 4.0], [30, 3.5], [40, 3.2]]
LINES = [
    *(way("plain", seed, loss) for seed, loss in enumerate((3.0, 3.2, 3.1))),
    *(way("int8, aware", seed, 3.0 * 1.01) for seed in (0,)),
    way("int8, aware", 1, 3.3),
    way("plain", 0, 9.9, steps=60),  # a quick look
    *(way("80% pruned, random", seed, 4.0 + 0.1 * seed) for seed in range(3)),
    *(way("80% pruned, magnitude", seed, 3.8) for seed in range(1, 3)),
    {"study": "rates", "member": "int8, aware", "generated_per_second": 1230.0},
    way("quarter-size student", 0, 4.0),
    way("quarter-size student, taught", 0, 3.6),
    run("plain", 1, 0.0, CURVE),
    run("plain", 4, 1e6, [[step, loss - 0.5] for step, loss in CURVE]),
    run("rank 32", 4, 6e5, [[step, loss - 0.2] for step, loss in CURVE]),
    link("plain", 1, [0.1, 0.2, 0.3]),
    link("plain", 4, [0.9, 0.3, 0.4]),
    link("rank 32", 4, [0.25]),
]


def test_tables_of_known_lines():
    found = tables(LINES)
    rows = {r.split("|")[1].strip(): r.split("|")[2:] for r in found["ways"].splitlines()}
    # Three seeds: the mean, and 4.303 standard errors; the quick look does not count.
    assert rows["plain"][0].strip() == "3.1000 ± 0.2484"
    # Two seeds, +1 % and +3.125 %: 12.706 standard errors of half their difference.
    assert rows["int8, aware"][1].strip() == "+2.06% ± 13.50%"
    assert rows["int8, aware"][4].strip() == "1.23 k"
    assert rows["plain"][4].strip() == ""
    # 0.3 and 0.4 lost by the two seeds that both have: 12.706 standard errors of 0.05.
    order = "| 80% pruned, random - 80% pruned, magnitude | +0.3500 ± 0.6353 |"
    assert order in found["order"]
    assert found["gap"].startswith("The teacher closes 40% of the student's gap")
    # Half of the plain model's 40 MB; one device sends nothing and reaches its end.
    assert "20 MB sent by each device" in found["frontier-bytes"]
    assert "| plain | 3.2000 |  | 3.5000 |" in found["frontier-bytes"]
    assert "| rank 32 |  |  | 3.3000 |" in found["frontier-bytes"]  # 33 steps
    # 40 steps of 0.2 s: 8 s, which are 20 steps of 0.4 s and 32 of 0.25 s.
    assert "10 Mbit/s, 8 s of training" in found["frontier-seconds"]
    assert "| plain | 3.2000 |  | 3.5000 |" in found["frontier-seconds"]
    assert "| rank 32 |  |  | 3.3000 |" in found["frontier-seconds"]
    assert set(tables([]).values()) == {MISSING}
    others = [line | {"seed": 7} for line in LINES if line.get("member") == "plain"]
    taught = [line for line in LINES if "student" in line.get("member", "")]
    assert tables(others[:1] + taught)["gap"] == MISSING  # no seed has all three


def test_every_member_has_a_config_that_fits():
    for member in MEMBERS.values():
        way_config(member, 0, 400).validate()
    for model in MODELS:
        config = frontier_config(model, 4, 0, 400)
        config.validate()
        assert config.data.batch_size == 32
