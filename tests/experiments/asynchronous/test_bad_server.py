"""What a parameter server is refused, in a line that helps."""

import sys

import pytest

from configs import fields
from configs.tiny import get_config
from experiments.asynchronous.pool import pool_of
from experiments.run.check import check, check_compiles
from parallel.mesh import data_mesh

SERVER = {"parallel.strategy": "parameter_server", "parallel.data": 1}
ASYNC = {"parallel.server.mode": "async"}
ISLANDS = {"parallel.strategy": "async_diloco"}
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
    (ASYNC | {"parallel.server.attendance": ((3, 9, "leaves"),)}, "worker of 0 to 3"),
    (ASYNC | {"parallel.server.attendance": ((3, 0, "goes"),)}, "expected .updates, work"),
    (
        ASYNC | {"parallel.server.attendance": ((3, 0, "leaves"), (5, 0, "leaves"))},
        "worker 0 leaves twice in a row",
    ),
    (
        ASYNC | {"parallel.server.attendance": ((3, 0, "leaves"), (3, 0, "joins"))},
        "two events of a worker at the same update",
    ),
    (
        ASYNC | {"parallel.server.attendance": tuple((2, w, "leaves") for w in range(4))},
        "after 2 updates no worker is left of parallel.server.workers 4",
    ),
    (
        {"parallel.server.attendance": ((3, 0, "leaves"),)},
        "with parallel.server.mode=sync the workers share the rows",
    ),
    ({"parallel.merge.quorum": 2}, "merge.quorum is 2, but it has no effect where"),
    (ISLANDS | {"parallel.merge.quorum": 5}, "quorum 5 is more than .*workers 4"),
    (ISLANDS | {"parallel.server.mode": "ssp"}, "mode is 'ssp', but it has no effect"),
    (ISLANDS | {"parallel.local.inner": "diloco"}, "inner is 'diloco', which cannot"),
    (ISLANDS | {"parallel.local.every": 9999}, "4 x .* 9999 = 39996 numbers may be out"),
    (ISLANDS | {"parallel.exchange.every": 1}, "replicas exchange moves, not gradients"),
    (ISLANDS | {"parallel.exchange.algorithm": "ring"}, "a push goes to the server shards"),
    (ISLANDS | {"optim.warmup_steps": 300, "steps": 400}, "300 is more than the 100 steps"),
    (
        ISLANDS | {"optim.schedule": "plateau"},
        "plateau follows the loss of its own island under strategy 'async_diloco'",
    ),
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
