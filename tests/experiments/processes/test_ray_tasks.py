"""Ray as the executor of cleaning: bytes, order, a bounded stream, workers that die."""

import contextlib
import dataclasses
import os
import pathlib
import signal

import pytest

from experiments.processes.ray_tasks import AHEAD, RayTasks
from lm.data.cleaning.cores import Cores
from lm.data.config import DataConfig
from lm.data.prepare import prepare
from tests.experiments.asynchronous.deaths import check_deaths, check_islands
from tests.experiments.runs import write_corpus

CORES = 2


class Recorded:
    """An executor that keeps what another one gives: documents, sketches, findings."""

    def __init__(self, executor):
        self.executor, self.given = executor, []

    def map(self, function, pieces, size):
        for made in self.executor.map(function, pieces, size):
            self.given.append(made)
            yield made


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    (made,) = (each for each in (folder / "rows").iterdir() if each.is_dir())
    return {file.name: file.read_bytes() for file in made.iterdir()}


def write_dirty_corpus(folder: pathlib.Path) -> None:
    write_corpus(folder, 30)
    texts = [file.read_text() for file in sorted(folder.iterdir())]
    (folder / "exact.txt").write_text(texts[3])
    (folder / "near.txt").write_text(f"{texts[4]}and a new end\n")
    (folder / "mojibake.txt").write_text("Ã¤rger Ã¼ber schÃ¶ne GrÃ¼ÃŸe\r\n" * 9)
    (folder / "blank.txt").write_text(" \n")


def test_ray(tmp_path, monkeypatch):
    """All in one test, since Ray takes seconds to start."""
    pytest.importorskip("ray", reason="requirements-ray.txt is not installed")
    monkeypatch.setattr("lm.data.cleaning.work.PIECE_DOCUMENTS", 4)
    write_dirty_corpus(tmp_path / "corpus")
    local = DataConfig(
        source="text",
        path=str(tmp_path / "corpus"),
        cache=str(tmp_path / "local"),
        vocab_size=300,
        seq_len=32,
    )
    here = Recorded(Cores(1))
    report = prepare(local, lambda: contextlib.nullcontext(here)).meta["cleaning"]
    with RayTasks("", CORES, []) as tasks:
        config = dataclasses.replace(local, cache=str(tmp_path / "ray"))
        there = Recorded(tasks)
        prepare(config, lambda: contextlib.nullcontext(there))
        check_stream(tasks, tmp_path / "died")
        check_deaths(tmp_path)
        check_islands(tmp_path)
    assert there.given == here.given
    assert sum(each.sketch is not None for piece in here.given for each in piece) > 30
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    # The equality is of something: each of these steps did something.
    assert report["exact_dedup"]["train"]["dropped"] == 1
    assert report["near_dedup"]["train"]["dropped"] == 1
    assert report["fix"]["train"]["changed"] == 1


def check_stream(tasks: RayTasks, died: pathlib.Path) -> None:
    """Map a stream whose third piece kills the first worker that takes it."""

    def square(number):
        if number == 2 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number

    taken = 0

    def numbers():
        nonlocal taken
        for taken in range(1, 41):
            yield taken - 1

    results = tasks.map(square, numbers(), lambda _: 1)
    assert next(results) == 0
    assert taken == AHEAD * CORES  # no more of the stream is in memory
    assert list(results) == [number * number for number in range(1, 40)]
    assert died.exists()
