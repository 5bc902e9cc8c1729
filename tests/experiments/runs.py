"""Start the commands, in processes of their own, on a small corpus."""

import functools
import json
import pathlib
import random
import subprocess
import sys
import tempfile

Result = subprocess.CompletedProcess
ROOT = pathlib.Path(__file__).parents[2]
WORDS = "def return self import class for in if else print value name list".split()


def write_corpus(folder: pathlib.Path, num_files: int = 12) -> pathlib.Path:
    """Write text files of random words in short lines; the same at every call."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(num_files):
        lines = [
            " ".join(rng.choices(WORDS, k=rng.randint(2, 9)))
            for _ in range(rng.randint(5, 120))
        ]
        (folder / f"{index}.txt").write_text("\n".join(lines) + "\n")
    return folder


def small(folder: pathlib.Path, **overrides: object) -> list[str]:
    """Return the flags of a run that takes seconds, its data in `folder`."""
    config = {
        "data.source": "text",
        "data.path": folder / "corpus",
        "data.cache": folder / "cache",
        "data.vocab_size": 300,
        "data.seq_len": 32,
        "data.batch_size": 16,
        "model.width": 32,
        "model.num_layers": 1,
        "model.num_heads": 2,
        "optim.warmup_steps": 0,  # so that a run may be as short as a test wants it
        "steps": 12,
        "eval_every": 4,
        "eval_batches": 1,
        "save_every": 0,
    } | overrides
    return [f"--config={ROOT}/configs/tiny.py"] + [
        f"--config.{name}={value}" for name, value in config.items()
    ]


def command(module: str, *flags: object) -> list[str]:
    return [sys.executable, "-m", f"experiments.{module}", *map(str, flags)]


@functools.cache
def server() -> subprocess.Popen:
    """Start the process, of this environment, that commands are forked from."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.experiments.server"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run(module: str, *flags: object, check: bool = True) -> Result:
    """Run a command in a forked process, which has the imports behind it."""
    (result,) = run_together([(command(module, *flags), {})], check)
    return result


def run_together(
    commands: list[tuple[list[str], dict[str, str]]], check: bool = True
) -> list[Result]:
    """Run commands as `run` does, at once, each with what its environment has besides."""
    with tempfile.TemporaryDirectory() as folder:
        requests = [
            {"module": arguments[2], "flags": arguments[3:], "environ": environ,
             "seconds": 300, "stdout": f"{folder}/{index}.out",
             "stderr": f"{folder}/{index}.err"}
            for index, (arguments, environ) in enumerate(commands)
        ]  # fmt: skip
        print(json.dumps(requests), file=server().stdin, flush=True)
        codes = json.loads(server().stdout.readline())
        said = [
            [pathlib.Path(request[name]).read_text() for name in ("stdout", "stderr")]
            for request in requests
        ]
    return [
        checked(Result(arguments, code, *texts), check)
        for (arguments, _), code, texts in zip(commands, codes, said, strict=True)
    ]


def run_anew(module: str, *flags: object, check: bool = True) -> Result:
    """Run a command as a user does, from the start of the interpreter."""
    result = subprocess.run(
        command(module, *flags), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    return checked(result, check)


def checked(result: Result, check: bool) -> Result:
    if check and result.returncode:
        raise AssertionError(f"exit code {result.returncode}:\n{result.stderr[-3000:]}")
    return result


def losses(workdir: pathlib.Path, split: str = "train") -> dict[int, float]:
    """Map step -> loss; a step that stands twice is an error."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [r["step"] for r in records if r["split"] == split]
    assert len(steps) == len(set(steps)), f"repeated steps: {steps}"
    return {r["step"]: r["loss"] for r in records if r["split"] == split}
