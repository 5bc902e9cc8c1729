"""A schedule, audited and replayed: what was applied, and the same parameters again."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from parallel.exchange.config import ExchangeConfig
from parallel.program import Key, Learner, Params
from parallel.server.config import ServerConfig
from parallel.server.desk import open_desk
from parallel.server.pool import Rows
from parallel.server.program import Forms, Line, Session, build_parts, local_pool


class Audit(NamedTuple):
    applied: int  # pushes
    lost: int  # numbers, or parts of them, that the position counts as applied but are not
    repeated: int  # pushes of what was applied before
    max_staleness: int  # updates between a pull and the update that its push made
    max_lag: int  # pushes that a worker was ahead of the slowest one when it pulled


def audit(
    lines: Sequence[Line], next: int, missing: Sequence[int], config: ServerConfig
) -> Audit:
    """Compare a schedule with the position (next, missing) that a checkpoint has.

    The lag is counted from the lines alone, not read from them.
    """
    workers = range(config.workers)
    parts = workers if config.synchronous else [None]  # None: the whole number
    pushed = Counter(
        (line.number, line.worker if config.synchronous else None) for line in lines
    )
    expected = {(n, part) for n in set(range(next)) - set(missing) for part in parts}
    staleness = [line.update - 1 - line.version for line in lines]
    return Audit(
        applied=len(lines),
        lost=len(expected - pushed.keys()),
        repeated=pushed.total() - len(pushed),
        max_staleness=max(staleness, default=0),
        max_lag=max(lags(lines, config), default=0),
    )


def lags(lines: Sequence[Line], config: ServerConfig) -> list[int]:
    """Return for each push how many pushes its worker was ahead when it pulled."""
    clocks = dict.fromkeys(range(config.workers), 0)
    after = [dict(clocks)]  # the clocks after each update
    for line in lines:
        clocks[line.worker] += 1
        after[line.update :] = [dict(clocks)]
    found = [after[line.version] for line in lines]
    return [
        clocks[line.worker] - min(clocks.values())
        for line, clocks in zip(lines, found, strict=True)
    ]


def replay(
    learner: Learner,
    mesh: Mesh,
    config: ServerConfig,
    exchange: ExchangeConfig,
    accumulation: int,
    lines: Sequence[Line],
    rows: Rows,
    key: Key,
) -> Params:
    """Apply a schedule from the first update on, in this process; return the parameters.

    Raises ValueError if the schedule lacks an update.
    """
    parts = build_parts(learner, mesh, config, exchange, accumulation)
    forms, pool = Forms(parts, mesh), local_pool(parts)
    session = Session(parts, pool)
    state = jax.device_get(forms.first(key))
    session.start(state, forms.privates(state), open_desk(session.workers))
    updates, pulls = by_update(lines), by_version(lines)
    for update, made in enumerate(updates, 1):
        for line in pulls.get(update - 1, []):
            (session.bare.add if line.whole else session.bare.discard)(line.worker)
            session.launch(line.worker, line.number, line.version, rows)
        told = [pool.finish(line.worker) for line in made]
        workers = [line.worker for line in made]
        session.update(update, told, workers, session.factor(update, workers[0]))
    return session.params(forms.whole.params)


def by_update(lines: Sequence[Line]) -> list[list[Line]]:
    """Return the pushes of each update, in the order of the workers."""
    found: list[list[Line]] = [[] for _ in range(max((x.update for x in lines), default=0))]
    for line in sorted(lines):
        found[line.update - 1].append(line)
    if [] in found:
        raise ValueError(
            f"the schedule has no push of update {found.index([]) + 1}: it is not whole, "
            "or the run began under another strategy; it cannot be replayed"
        )
    return found


def by_version(lines: Sequence[Line]) -> dict[int, list[Line]]:
    found: dict[int, list[Line]] = {}
    for line in lines:
        found.setdefault(line.version, []).append(line)
    return found
