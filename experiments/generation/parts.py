"""Write one long text in parts at once: an outline of heads, then what follows each head.

The heads (here of Python functions) are written in turn, each after stubs of the earlier
heads. Then all bodies are written in one batch and merged in order (Ning et al. 2024,
Skeleton-of-Thought). A body follows the heads before it, but sees no other body. Writing in
parts saves time; experiments.studies.generation measures the loss of quality.
"""

from collections.abc import Callable

HEAD, STUB = "\n\n\ndef ", "\n    ..."
HEAD_TOKENS = 24  # the most that a head may have

# (texts, largest number of tokens to add) -> continuations
Writer = Callable[[list[str], int], list[str]]


def first_line(text: str) -> str:
    return text.split("\n", 1)[0]


def body(text: str) -> str:
    """Cut before the first line that is not indented, where the next part would begin."""
    first, *lines = text.split("\n")
    kept = [first]
    for line in lines:
        if line and not line[0].isspace():
            break
        kept.append(line)
    return "\n".join(kept).rstrip()


def write_outline(write: Writer, start: str, num_parts: int) -> list[str]:
    """Return the heads, each without its `def`."""
    heads: list[str] = []
    for _ in range(num_parts):
        (new,) = write([outline_before(start, heads) + HEAD], HEAD_TOKENS)
        heads.append(first_line(new))
    return heads


def outline_before(start: str, heads: list[str]) -> str:
    """Return the start and then a stub of each head."""
    return start + "".join(HEAD + head + STUB for head in heads)


def write_in_parts(write: Writer, start: str, num_parts: int, num_new: int) -> str:
    """Write heads in turn, then all bodies of up to `num_new` tokens at once."""
    heads = write_outline(write, start, num_parts)
    known = [
        outline_before(start, heads[:index]) + HEAD + head
        for index, head in enumerate(heads)
    ]
    bodies = map(body, write(known, num_new))
    return start + "".join(HEAD + h + b for h, b in zip(heads, bodies, strict=True))


def write_in_turn(write: Writer, start: str, num_parts: int, num_new: int) -> str:
    """Write part after part; each follows the whole text before it."""
    text = start
    for _ in range(num_parts):
        text += HEAD
        (new,) = write([text], HEAD_TOKENS + num_new)
        text += body(new)
    return text
