"""What a parameter server is refused, in a line that helps."""

import math
import sys
from types import ModuleType

import pytest

from configs import fields
from configs.tiny import get_config
from experiments.asynchronous.bodies import Setup
from experiments.asynchronous.pool import RayPool, pool_of
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
    ({"parallel.server.slow": (1, 1, 1, math.nan)}, "expected numbers of 1 and more"),
    ({"parallel.server.slow": (1, 1, 1, math.inf)}, "expected numbers of 1 and more"),
    ({"parallel.server.policy": "grid"}, "choose one of static, round_robin, minimum_co"),
    (ASYNC | {"parallel.server.policy": "by_speed"}, "no effect where parallel.server.mo"),
    ({"parallel.server.pieces": 6}, "batch_size 32 .*server.pieces 6 = 6; change one"),
    (
        {"parallel.server.policy": "backup", "parallel.exchange.codec": "int8"},
        "policy=backup with 4 pieces for .*workers 4 does not go with .*codec=int8",
    ),
    (
        {"parallel.server.pieces": 8, "parallel.server.optimizer": "worker"},
        "policy=static with 8 pieces .*not go with parallel.server.optimizer=worker",
    ),
    (
        {
            "parallel.exchange.codec": "int8", "parallel.exchange.clip": 1.0,
            "parallel.server.optimizer": "worker",
        },
        "exchange.clip 1.0 clips gradients, but with parallel.server.optimizer=worker",
    ),
    (
        {"parallel.server.pool": "ray", "compress.distil.teacher": "runs/large"},
        "teacher is 'runs/large', but with parallel.server.pool=ray workers read their",
    ),
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
    (
        ISLANDS | {"parallel.merge.quorum": 4, "parallel.merge.grace": 0.5},
        "grace 0.5 has no effect: .*quorum 4 pushes, and there are .*workers 4",
    ),
    (
        ISLANDS | {"parallel.merge.activation": 0.5},
        "activation 0.5 has no effect where parallel.merge.momentum_every is 1",
    ),
    (
        ISLANDS | {"parallel.exchange.codec": "int8", "parallel.exchange.clip": 1.0},
        "exchange.clip is 1.0, but under .* replicas exchange moves, not gradients",
    ),
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


def test_without_a_cluster_at_the_address_it_says_so(monkeypatch):
    """A cluster that refuses the run later, by its token, ends it in a line as well."""
    ray = ModuleType("ray")
    ray.is_initialized = lambda: False
    monkeypatch.setitem(sys.modules, "ray", ray)
    config = fields.override(get_config(), SERVER | {"parallel.server.pool": "ray"})
    for address in ("127.0.0.1:1", "127.0.0.1:99999"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ValueError, match=f"no Ray cluster answers at '{address}'"):
            pool_of(config, 300, data_mesh(1))
    pool = RayPool(Setup(config, 300, 1, "cpu"))
    with pytest.raises(OSError, match="no Ray cluster answers at '127.0.0.1:99999'"):
        pool.start([], [], [])
