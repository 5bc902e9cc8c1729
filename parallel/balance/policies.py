"""The table of policies: who does what next.

To add a policy, write a function from a View to Queues and enter a row in POLICIES.
"""

from parallel.balance import online, plans
from parallel.balance.moves import best_of
from parallel.balance.view import Policy, planned

PLANS = {
    "static": plans.static,
    "round_robin": plans.round_robin,
    "grid": plans.grid,
    "minimum_completion_time": plans.minimum_completion_time,
    "longest_first": plans.longest_processing_time,
    "min_min": plans.min_min,
    "max_min": plans.max_min,
    "sufferage": plans.sufferage,
    "by_speed": plans.by_speed,
    "by_length": plans.by_length,
}
POLICIES: dict[str, Policy] = {
    **{name: planned(plan) for name, plan in PLANS.items()},
    "dynamic": online.dynamic,
    "work_stealing": online.work_stealing,
    "reverse": online.reverse,
    "backup": online.backup,
    "best": online.replanned(best_of(list(PLANS.values()))),
}


def policy_named(name: str) -> Policy:
    """Return a policy of the table; ValueError, with the list, for another name."""
    if name not in POLICIES:
        raise ValueError(
            f"there is no policy {name!r}; choose one of {', '.join(POLICIES)}"
        )
    return POLICIES[name]
