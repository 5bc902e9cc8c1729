"""The table and the picture of runs whose parallelism changes, on curves made by hand."""

import numpy as np
import pytest

from experiments.studies.phases.members import BASE, MEMBERS, borders, member_config
from experiments.studies.phases.tables import NONE, change_table, jump, picture


def test_members_have_their_phases():
    for member, spreads in MEMBERS.items():
        config = member_config({"member": member, "seed": 1, "steps": 60})
        assert len(config.parallel.each_phase) == len(spreads)
        config.validate()
    assert borders(60) == [20, 40]


def test_the_table_and_the_picture():
    assert change_table([]) == NONE
    base = np.linspace(4.0, 3.0, 30)
    changed = base + np.repeat([1e-6, 0.25, 0.125], 10)
    lines = [
        {"member": BASE, "seed": 0, "steps": 30, "loss": 2.5, "curve": base.tolist()},
        {"member": "2, 8, 4 devices", "seed": 0, "steps": 30, "loss": 2.75}
        | {"curve": changed.tolist()},
        {"member": BASE, "seed": 0, "steps": 12, "loss": 9.0, "curve": [9.0] * 12},
    ]
    rows = change_table(lines).splitlines()
    assert rows[2].split("|")[1:3] == [f" {BASE} ", " 2.5000 "]
    cells = [cell.strip() for cell in rows[3].split("|")[2:-1]]
    assert cells == ["2.7500", "1.0e-06", "2.5e-01", "1.2e-01", "+2.5e-01", "-1.2e-01"]
    assert jump(changed - base, 10) == pytest.approx(0.25 - 1e-6)
    assert picture(lines).startswith(b"\x89PNG")
