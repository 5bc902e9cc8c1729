"""Policies that go on deciding while the work is done."""

import math

import numpy as np

from parallel.balance.plans import minimum_completion_time, static
from parallel.balance.view import NONE, Plan, Policy, Queues, View, appended, planned

# Hysteresis: work moves if the last worker would end so much later than the mean, ...
START_MOVING = 0.2
STOP_MOVING = 0.05  # ... and goes on moving until it would end only so much later.


def dynamic(view: View) -> Queues:
    """Let each idle worker pull a chunk: a share of what is left, at least one piece.

    The share is half of what would be left for each worker if all were equal, so that
    chunks are large at first and small at the end (guided self-scheduling: Polychronopoulos
    and Kuck 1987; half of it: Hummel et al. 1992).
    """
    queues, pool = [list(queue) for queue in view.queues], list(view.pool)
    for worker in view.idle:
        size = math.ceil(len(pool) / (2 * len(view.alive)))
        queues[worker], pool = pool[:size], pool[size:]
    return tuple(map(tuple, queues))


def work_stealing(view: View) -> Queues:
    """Begin as `static` does. An idle worker takes half of what the fullest has left.

    It takes the half at the end of the queue (Blumofe and Leiserson 1999, who steal one
    piece from a worker chosen at random).
    """
    queues = [list(queue) for queue in planned(static)(view)]
    for thief in view._replace(queues=tuple(map(tuple, queues))).idle:
        left = [view.seconds_NM[q, w].sum() for w, q in enumerate(queues)]
        victim = int(np.argmax(left))
        half = len(queues[victim]) // 2
        queues[victim], queues[thief] = queues[victim][:half], queues[victim][half:]
    return tuple(map(tuple, queues))


def reverse(view: View) -> Queues:
    """Begin as `static` does. Move work from the hottest worker, with hysteresis.

    The hottest is the worker that is expected to end last. The last piece of its queue goes
    to the worker that would end it first.
    """
    queues = [list(queue) for queue in planned(static)(view)]
    ends_M = view._replace(queues=tuple(map(tuple, queues))).loads_M
    alive = view.alive
    mean = ends_M[alive].mean()
    if ends_M[alive].max() <= (1 + START_MOVING) * mean:
        return tuple(map(tuple, queues))
    while ends_M[alive].max() > (1 + STOP_MOVING) * ends_M[alive].mean():
        hot = alive[int(np.argmax(ends_M[alive]))]
        if not queues[hot]:
            break
        seconds_M = view.seconds_NM[queues[hot][-1]]
        idle = int(np.argmin(ends_M + seconds_M))
        if ends_M[idle] + seconds_M[idle] >= ends_M[hot]:
            break
        ends_M[hot] -= seconds_M[hot]
        ends_M[idle] += seconds_M[idle]
        queues[idle].append(queues[hot].pop())
    return tuple(map(tuple, queues))


def num_spares(num_alive: int) -> int:
    """Return how many of the living workers are spare: one in eight, and one at least."""
    return max(num_alive // 8, 1) if num_alive > 1 else 0


def backup(view: View) -> Queues:
    """Keep spare workers, which repeat what is expected to end last; the first counts.

    The pieces are dealt to the workers that are not spare, each to the one that would end
    it first. A worker with nothing to do, at first a spare one, runs a copy of the piece
    with the latest expected end that has none yet. A piece is done once one of its two
    runs has ended. So no piece is lost, unlike in Chen et al. 2016 ("Revisiting distributed
    synchronous SGD"), where the gradients of the last workers are dropped.
    """
    alive = view.alive
    first = alive[: len(alive) - num_spares(len(alive))]
    ready_M = np.full_like(view.ready_M, np.inf)
    ready_M[first] = view.loads_M[first]
    dealt = minimum_completion_time(view.seconds_NM[list(view.pool)], ready_M)
    queues = appended(view.queues, ((view.pool[k], worker) for k, worker in dealt))
    view = view._replace(queues=queues)
    for worker in view.idle:
        ends = expected_ends(view)
        here = [*view.running, *(piece for queue in queues for piece in queue)]
        single = [piece for piece in ends if here.count(piece) == 1]
        if single:
            latest = max(single, key=ends.get)
            queues = appended(queues, [(latest, worker)])
            view = view._replace(queues=queues)
    return queues


def expected_ends(view: View) -> dict[int, float]:
    """Return when each piece that is queued or runs is expected to end."""
    ends = {}
    for worker in view.alive:
        end = view.ready_M[worker]
        if view.running[worker] != NONE:
            ends[view.running[worker]] = end
        for piece in view.queues[worker]:
            end = end + view.seconds_NM[piece, worker]
            ends[piece] = end
    return ends


def replanned(plan: Plan) -> Policy:
    """Return the policy that plans all at first, and anew if the work comes out of balance.

    "Out of balance" is what `reverse` means by it. Then all that has not begun is planned
    again, and the new plan counts if it is expected to end before the old one by as much
    as `reverse` leaves.
    """

    def policy(view: View) -> Queues:
        queues = planned(plan)(view)
        view = view._replace(queues=queues, pool=())
        ends_M, alive = view.loads_M, view.alive
        waiting = tuple(sorted(piece for queue in queues for piece in queue))
        if not waiting or ends_M[alive].max() <= (1 + START_MOVING) * ends_M[alive].mean():
            return queues
        nothing = view._replace(queues=((),) * len(queues), pool=waiting)
        anew = planned(plan)(nothing)
        after_M = nothing._replace(queues=anew).loads_M
        gains = after_M[alive].max() * (1 + STOP_MOVING) < ends_M[alive].max()
        return anew if gains else queues

    return policy
