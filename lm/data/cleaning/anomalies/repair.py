"""Fill in lost characters from text where the same surroundings are whole.

Numbers that are missing in a series are interpolated from their neighbours. For text, the
neighbours are the characters before and after the gap: an n-gram looks for them in the rest
of the document and in the corpus. What stands between them there is a candidate. The more
characters of the surroundings agree, the more its vote counts. A gap is filled only where
nearly all votes are for one candidate; else it stays and is masked.
"""

import collections
import re

LOST = re.compile("\ufffd+")
LEAST = 3  # characters on each side that must agree
MOST = 16  # characters on each side that are compared
MOST_FILL = 24  # characters of a gap that one replacement character may stand for
AGREED = 12  # characters that must agree, on both sides together
AGREED_OPEN = 16  # where the length of the gap is not known
SURE = 0.9  # share of the votes
MOST_GAPS = 500  # of a text that are looked at: each goes through all of the memory
ODDS = 2.0  # a further character that agrees makes a vote so many times as heavy


def repair(text: str, memory: str) -> tuple[str, list[str]]:
    """Return the text with the sure gaps filled, and what they were filled with.

    memory: other text of the corpus. Of a text with very many gaps, the first are filled.
    """
    filled: list[str] = []

    def replacement(gap: re.Match[str]) -> str:
        left, right = (
            text[max(gap.start() - MOST, 0) : gap.start()],
            text[gap.end() : gap.end() + MOST],
        )
        found = fill(left, right, gap.end() - gap.start(), f"{text}\n{memory}")
        if found is None:
            return gap[0]
        filled.append(found)
        return found

    return LOST.sub(replacement, text, MOST_GAPS), filled


def fill(left: str, right: str, length: int, memory: str) -> str | None:
    """Return what stands between `left` and `right` in `memory`; None if that is not sure.

    It has `length` characters. One replacement character may also stand for several.
    """
    before, after = left[-LEAST:], right[:LEAST]
    if min(len(before), len(after)) < LEAST or "\ufffd" in before + after:
        return None
    count = length if length > 1 else f"1,{MOST_FILL}"
    between = f"(?=([^\ufffd]{{{count}}}?){re.escape(after)})"
    votes: collections.Counter[str] = collections.Counter()
    best: dict[str, int] = {}
    for match in re.finditer(re.escape(before) + between, memory, re.DOTALL):
        agreed = equal_end(left, memory[max(match.end() - MOST, 0) : match.end()])
        agreed += equal_start(right, memory[match.end(1) : match.end(1) + MOST])
        votes[match[1]] += ODDS**agreed
        best[match[1]] = max(best.get(match[1], 0), agreed)
    if not votes:
        return None
    first, weight = votes.most_common(1)[0]
    least = AGREED if length > 1 else AGREED_OPEN
    sure = weight >= SURE * votes.total() and best[first] >= least
    return first if sure else None


def equal_start(x: str, y: str) -> int:
    pairs = enumerate(zip(x, y, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(x), len(y)))


def equal_end(x: str, y: str) -> int:
    return equal_start(x[::-1], y[::-1])
