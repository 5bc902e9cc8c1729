"""What a parameter server is refused, in a line that helps."""

import sys

import pytest

from configs import fields
from configs.tiny import get_config
from experiments.asynchronous.pool import pool_of
from experiments.run.build import check, check_compiles
from parallel.mesh import data_mesh

SERVER = {"parallel.strategy": "parameter_server", "parallel.data": 1}
REFUSED = [
    ({"parallel.server.shards": 99}, "shards 99 is more than the .* arrays of parameters"),
    ({"parallel.server.staleness": -1}, "staleness is -1; it must be at least 0"),
    (
        {"parallel.server.mode": "ssp", "parallel.server.staleness": -1},
        "staleness is -1; it must be at least 0",
    ),
    ({"parallel.server.mode": "hogwild"}, "choose one of sync, async, ssp"),
    ({"parallel.server.staleness": 3}, "no effect where parallel.server.mode is 'sync'"),
    (
        {"parallel.strategy": "fsdp", "parallel.server.mode": "async"},
        "parallel.server.mode is 'async', but it has no effect where parallel.strategy is "
        "'fsdp'; unset it, or let parallel.strategy be 'parameter_server'",
    ),
    (
        {"parallel.server.slow": (1, 4)},
        "parallel.server.slow has 2 numbers, but there are parallel.server.workers 4",
    ),
    ({"parallel.server.slow": (1, 1, 1, 0.5)}, "expected numbers of 1 and more"),
    ({"parallel.server.workers": 5}, "batch_size 32 .*workers 5 = 5; change one"),
    ({"parallel.server.workers": 65}, "workers is 65; it must be at least 1 and at most"),
    ({"parallel.exchange.codec": "power_sgd"}, "choose one of none, bfloat16, int8"),
    ({"parallel.exchange.delay": 2}, "parallel.exchange.delay is 2, but has no effect"),
    (
        {
            "parallel.server.mode": "async", "parallel.server.optimizer": "worker",
            "parallel.server.compensation": 0.1,
        },
        "corrects gradients, but with parallel.server.optimizer=worker updates are pushed",
    ),
    ({"optim.clip_value": 1.0}, "clip_value 1.0 changes the norm .*shards 2 sees a part"),
    ({"robust.weights": "huber"}, "no effect where parallel.strategy"),
    ({"trace_norms": True}, "trace_norms is set, but strategy 'parameter_server'"),
]  # fmt: skip


@pytest.mark.parametrize("overrides, words", REFUSED, ids=lambda x: str(x)[:50])
def test_mistakes(overrides, words):
    with pytest.raises(ValueError, match=words):
        check(fields.override(get_config(), SERVER | overrides))


def test_the_usual_server_is_fine_and_has_no_single_program():
    config = fields.override(get_config(), SERVER)
    mesh = check(config)
    assert mesh.size == 1
    with pytest.raises(ValueError, match="is not one program but those of workers"):
        check_compiles(config)


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    config = fields.override(get_config(), SERVER | {"parallel.server.pool": "ray"})
    with pytest.raises(ValueError, match="pip install -r requirements-ray.txt"):
        pool_of(config, 300, data_mesh(1))
    config.parallel.server.pool = "here"
    assert pool_of(config, 300, data_mesh(1)) is None
