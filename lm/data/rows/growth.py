"""A batch that grows: how many rows the batch of each step has, in closed form.

A small batch uses the tokens of the first steps best, a large one those of the last: the
gradient noise scale grows while the loss falls (McCandlish et al. 2018, 3; Smith et al.
2018, "Don't Decay the Learning Rate, Increase the Batch Size").

The schedule is a part of the config, ((steps, rows), ...): after so many steps a batch has
so many rows. It never follows the run itself, because then the batch of step k would depend
on the strategy.
"""

Growth = tuple[tuple[int, int], ...]


def rows_at(batch_size: int, growth: Growth, step: int) -> int:
    """Return the rows in the batch of a step; the first step is 0."""
    return next((rows for start, rows in reversed(growth) if step >= start), batch_size)


def rows_before(batch_size: int, growth: Growth, step: int) -> int:
    """Return the rows in all batches before that of a step."""
    starts = [0, *(start for start, _ in growth)]
    sizes = [batch_size, *(rows for _, rows in growth)]
    ends = [*starts[1:], step]
    return sum(
        rows * (min(end, step) - start)
        for start, end, rows in zip(starts, ends, sizes, strict=True)
        if start < step
    )


def batch_sizes(
    batch_size: int, growth: Growth, first: int = 0, last: int | None = None
) -> list[int]:
    """Return the different numbers of rows of the steps [first, last), in their order.

    `last` is None: of all steps after `first`.
    """
    later = [
        rows for step, rows in growth if step > first and (last is None or step < last)
    ]
    return [rows_at(batch_size, growth, first), *later]


def check_growth(batch_size: int, growth: Growth, shards: int) -> None:
    """Raise ValueError for a schedule that does not grow, or does not suit the shards."""
    before = (0, batch_size)
    for phase in growth:
        if not (
            isinstance(phase, tuple)
            and len(phase) == 2
            and all(type(number) is int for number in phase)
        ):
            raise ValueError(
                f"data.growth has {phase!r}; expected pairs (steps, rows) of whole "
                "numbers, as in ((200, 64), (400, 128))"
            )
        steps, rows = phase
        if steps <= before[0] or rows <= before[1]:
            raise ValueError(
                f"data.growth has {rows} rows after {steps} steps, which follow "
                f"{before[1]} rows after {before[0]} steps; both numbers must grow"
            )
        if rows % shards:
            raise ValueError(
                f"data.growth has batches of {rows} rows, which are not divisible by "
                f"data.shards {shards}; change one of them"
            )
        before = phase
