"""A schedule, audited and replayed: what was applied, and the same parameters again."""

import bisect
import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from parallel.program import Key, Params
from parallel.server.attendance import attended
from parallel.server.config import ServerConfig
from parallel.server.forms import Forms
from parallel.server.kinds import Parts
from parallel.server.program import local_pool, new_session
from parallel.server.session import Line, Session
from parallel.server.worker import Order, Rows, Told


class Audit(NamedTuple):
    applied: int  # numbers, or pieces of them that workers share
    lost: int  # numbers, or pieces of them, that the position counts as applied but are not
    # Pushes of what was applied before, or of what the position will hand out again.
    repeated: int
    max_staleness: int  # updates between a pull and the update that its push made
    max_lag: int  # pushes that a worker was ahead of the slowest one when it pulled


def audit(
    lines: Sequence[Line],
    next: int,
    missing: Sequence[int],
    config: ServerConfig,
    elsewhere: Collection[int] = (),
) -> Audit:
    """Compare a schedule with the position (next, missing) that a checkpoint has.

    `elsewhere` are numbers that the run took under another strategy. The lag is counted
    from the lines alone, not read from them.
    """
    pieces = range(config.num_pieces if config.synchronous else 1)
    pushed = Counter((line.number, line.piece) for line in lines)
    numbers = set(range(next)).difference(missing, elsewhere)
    expected = {(n, piece) for n in numbers for piece in pieces}
    staleness = [line.update - 1 - line.version for line in lines]
    return Audit(
        applied=len(lines),
        lost=len(expected - pushed.keys()),
        repeated=pushed.total() - len(pushed) + len(pushed.keys() - expected),
        max_staleness=max(staleness, default=0),
        max_lag=max(lags(lines, config), default=0),
    )


def lags(lines: Sequence[Line], config: ServerConfig) -> list[int]:
    """Return for each push how many pushes its worker was ahead when it pulled."""
    if config.synchronous:
        return [0] * len(lines)
    clocks = attended({}, config.attendance, config.workers, 0)
    updates, after = [0], [clocks]  # updates, and the clocks after each of them
    pushes = list(dict.fromkeys((x.update, x.worker, x.version) for x in lines))
    for update, made in itertools.groupby(pushes, lambda push: push[0]):
        for _, worker, _ in made:
            clocks = {**clocks, worker: clocks.get(worker, 0) + 1}
        clocks = attended(clocks, config.attendance, config.workers, update)
        updates.append(update)
        after.append(clocks)
    # A schedule may begin late, where another strategy made the first updates.
    pulled = [after[bisect.bisect(updates, version) - 1] for _, _, version in pushes]
    return [
        seen.get(worker, 0) - min(seen.values())
        for seen, (_, worker, _) in zip(pulled, pushes, strict=True)
    ]


def replay(
    parts: Parts,
    mesh: Mesh,
    lines: Sequence[Line],
    rows: Rows,
    key: Key,
    given: Params | None = None,
) -> Params:
    """Apply a schedule from the first update on, in this process; return the parameters.

    `given` are those that the run began with, if they are not drawn from the key. Raises
    ValueError if the schedule lacks an update.
    """
    forms, pool = Forms(parts, mesh), local_pool(parts)
    session = new_session(parts, pool)
    first = forms.first(key)
    if given is not None:
        first = first._replace(params=given, opt=parts.learner.optimizer.init(given))
    forms.begin(session, jax.device_get(first))
    updates, pulls = by_update(lines), by_version(lines)
    for version, made in enumerate(updates):
        if parts.config.synchronous:
            session.update([pushed_again(session, line, rows) for line in made])
            continue
        for worker, pulled in by_worker(pulls.get(version, [])).items():
            (session.bare.add if pulled[0].whole else session.bare.discard)(worker)
            numbers = tuple(line.number for line in pulled)
            session.launch(worker, numbers, rows)
        told = {worker: pool.finish(worker) for worker in by_worker(made)}
        if parts.merging is None:
            ((worker, one),) = told.items()
            session.update([(session.orders.pop(worker), one)])
        else:
            out = {worker: session.orders[worker].numbers for worker in told}
            session.desk = session.desk._replace(out=out, clocks=dict.fromkeys(told, 0))
            session.merged(told, made[0].step)
    return session.params(forms.whole.params)


def pushed_again(session: Session, line: Line, rows: Rows) -> tuple[Order, Told]:
    """Let a worker pull and push as this line says; no update is made between."""
    if line.whole:
        session.bare.add(line.worker)
    session.launch(line.worker, (line.number,), rows, line.piece)
    return session.orders.pop(line.worker), session.pool.finish(line.worker)


def by_worker(lines: Sequence[Line]) -> dict[int, list[Line]]:
    found: dict[int, list[Line]] = {}
    for line in lines:
        found.setdefault(line.worker, []).append(line)
    return found


def by_update(lines: Sequence[Line]) -> list[list[Line]]:
    """Return the pushes of each update, in the order of the pieces and of the workers."""
    found: list[list[Line]] = [[] for _ in range(max((x.update for x in lines), default=0))]
    for line in sorted(lines, key=lambda x: (x.update, x.piece, x.worker, x.number)):
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
