"""The study of preparation: its corpus, its look at processes, its tables."""

import io
import keyword
import sys
import time
import tokenize

from experiments.studies.preparation.corpus import altered
from experiments.studies.preparation.tables import NONE, preparation_tables
from experiments.studies.preparation.watch import watch

MB = 1_000_000
# Fills 60 MB, and a child of it 40 MB, as bytes that are not zero.
PROGRAM = """
import subprocess, sys, time
held = b"x" * 60_000_000
child = "import time; held = b'x' * 40_000_000; time.sleep({seconds})"
subprocess.run([sys.executable, "-c", child])
print("done")
"""


def test_altered_text_is_other_text_of_the_same_words():
    words = ", ".join(f"name{i}" for i in range(9))
    text = f"import os\n\ndef f1({words}):\n    return os.sep.join([{words}])\n"

    def names(code: str) -> list[str]:
        found = tokenize.generate_tokens(io.StringIO(code).readline)
        return [t.string for t in found if t.type == tokenize.NAME]

    one, other = altered(text, "1 a.py"), altered(text, "2 a.py")
    assert one == altered(text, "1 a.py") and len({text, one, other}) == 3
    given = dict(zip(names(text), names(one), strict=True))
    assert all(given[word] == word for word in given if keyword.iskeyword(word))
    assert sorted(given.values()) == sorted(given)  # each stands for another


def test_memory_and_time_of_a_command_and_its_children():
    command = [sys.executable, "-c", PROGRAM.format(seconds=1)]
    watched = watch(command)
    assert watched.output == "done\n" and 1 < watched.seconds < 30
    assert 60 * MB < watched.peak < 90 * MB
    assert 40 * MB < watched.workers < 70 * MB
    began = time.perf_counter()
    killed = watch([sys.executable, "-c", PROGRAM.format(seconds=100)], kill_after=1)
    assert killed.output == "" and time.perf_counter() - began < 30


def test_tables_tell_what_is_equal_and_what_a_document_takes():
    assert all(NONE in table for table in preparation_tables([]).values())

    def whole(executor: str, megabytes: int, **more: object) -> dict:
        return {
            "member": f"{executor}, {megabytes} MB", "kind": "whole", "executor": executor,
            "megabytes": megabytes, "workers": 2, "documents": 1000 * megabytes,
            "seconds": 10.0, "mb_per_s": 1.0, "peak": 300 * MB, "peak_workers": 0,
            "digest": 7,
        } | more  # fmt: skip

    lines = [
        whole("local", 200, peak=390 * MB),
        whole("ray", 100, digest=8),
        whole("local", 100),
    ]
    made = preparation_tables(lines)
    assert "| on Ray, 2 workers | 100 MB | no |" in made["equal"]
    # 90 MB more for 100,000 documents more.
    assert "| prepare | 200 MB | 200,000 | 390 MB | 1.300 | 900 B |" in made["memory"]
    made = preparation_tables(
        [*lines, whole("ray", 100)]
    )  # measured again: the last counts
    assert "| on Ray, 2 workers | 100 MB | all |" in made["equal"]
