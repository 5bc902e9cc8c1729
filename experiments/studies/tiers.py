"""Three sizes of text, each from its plan to a trained model, on small stand-ins.

python -m experiments.studies.tiers [--steps=200] [--only=small,medium,large]

small    a small part of the standard library: one process, 2.5 times the steps, many
         epochs; trained with the recommended augmentation, and without
medium   all of it: two processes, each with the whole model
large    the same on devices whose memory is made up to be too small for the state: two
         machines of two devices, between which the state is split

For each it runs experiments.plan, takes the flags that the plan prints, and trains with
them under experiments.launch. Adds lines to results/tiers.jsonl, skips the runs that are
there, and fills in the table of docs/questions/which-regime-is-my-run-in.md.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

from absl import flags

from experiments.planning.hardware import write_machine
from experiments.processes.messages import human, say, size, user_errors
from experiments.run import startup
from experiments.run.summary import read_summary
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line, read, write
from experiments.sweeps.tables import markdown
from lm.data.sources.stdlib import stdlib_folder

# At half of its width, the standard library is enough text for tiny.
CONFIG = ("--config=configs/tiny.py", "--config.model.width=64")
ROOMY, TIGHT = 4e9, 10.5e6  # bytes of a device


class Tier(NamedTuple):
    processes: int
    devices: int  # of each process
    memory: float  # of a device
    only: str  # the strategies that the plan weighs
    text: tuple[str, ...] = ()  # flags that name the text; (): the standard library
    longer: float = 1.0  # how many times as many steps as --steps


TIERS = {
    "small": Tier(
        1, 1, ROOMY, "jit",
        ("--config.data.source=text", f"--config.data.path={stdlib_folder()}/asyncio/*.py"),
        longer=2.5,
    ),
    "medium": Tier(2, 1, ROOMY, "shard_map"),
    "large": Tier(2, 2, TIGHT, "fsdp,hsdp"),
}  # fmt: skip
RUNS = (("small", True), ("medium", True), ("large", True), ("small", False))
STEPS = flags.DEFINE_integer("steps", 200, "Steps of each run.", lower_bound=40)
ONLY = flags.DEFINE_list("only", list(TIERS), "Tiers to run.")
RESULTS = flags.DEFINE_string(
    "results", "results/tiers.jsonl", "File of results, to which lines are added."
)
PAGE = define_page("docs/questions/which-regime-is-my-run-in.md")


def stand_in(memory: float, devices: int) -> dict[str, Any]:
    """Return devices for a plan; only their memory matters here, the rest is made up."""
    return {
        "platform": "cpu",
        "devices": devices,
        "flops": {"float32": [[0, 1e11]]},
        "memory": memory,
        "memory_bandwidth": 1e10,
        "collectives": {"all-reduce": {"bandwidth": 1e9, "latency": 1e-4}},
        "overlaps": False,
    }


def told(module: str, *arguments: str) -> str:
    """Run a command; return what it printed. RuntimeError if it fails."""
    command = [sys.executable, "-m", f"experiments.{module}", *arguments]
    ended = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8")
    if ended.returncode:
        raise RuntimeError(f"{module} ended with {ended.returncode}; see above")
    return ended.stdout


def planned(tier: Tier, folder: pathlib.Path, steps: int) -> dict[str, Any]:
    """Plan a tier: its plan.json, and the flags of the best as the command prints them."""
    machine = folder / "hardware.json"
    write_machine(machine, stand_in(tier.memory, tier.processes * tier.devices))
    printed = told(
        "plan", *CONFIG, *tier.text, f"--hardware={machine}", f"--only={tier.only}",
        f"--out={folder}", f"--config.steps={steps}",
    )  # fmt: skip
    found = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    best = re.search(r"^The best: (.*)$", printed, re.MULTILINE)[1].split()
    return found | {"best": best}


def run(name: str, recommended: bool, steps: int) -> Line:
    """Plan a tier and train it, with or without what its regime recommends."""
    tier = TIERS[name]
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        plan = planned(tier, folder, steps)
        regime, best = plan["regime"], plan["candidates"][0]
        # The plan has chosen a strategy, of those that the regime asks for.
        extra = [x for x in regime["flags"] if "parallel.strategy" not in x]
        chosen = [*plan["best"], *(extra if recommended else [])]
        told(
            "launch", f"--processes={tier.processes}",
            f"--devices_per_process={tier.devices}", "--", *CONFIG, *tier.text, *chosen,
            f"--config.steps={steps}", f"--workdir={folder}/run",
        )  # fmt: skip
        summary = read_summary(folder / "run")
    names = ("val_loss", "epochs", "strategy", "processes", "devices", "parameters",
             "state_bytes")  # fmt: skip
    return {
        "regime": regime["name"], "reason": regime["reason"], "flags": chosen,
        "planned_state": best["memory"]["parameters"] + best["memory"]["optimizer"],
        "memory": tier.memory, **{x: summary[x] for x in names},
    }  # fmt: skip


def tiers_table(lines: list[Line]) -> str:
    head = (
        "regime by the plan", "memory of a device", "processes x devices", "flags",
        "steps", "epochs", "state of a device, planned", "compiled", "validation loss",
    )  # fmt: skip
    rows = [
        [
            x["regime"], size(x["memory"]),
            f"{x['processes']} x {x['devices'] // x['processes']}",
            " ".join(f"`{flag.removeprefix('--config.')}`" for flag in x["flags"]),
            str(x["steps"]), f"{x['epochs']:.1f}", size(x["planned_state"]),
            size(x["state_bytes"]), f"{x['val_loss']:.4f}",
        ]
        for x in lines
    ]  # fmt: skip
    if not rows:
        return "not measured"
    said = f"{human(lines[0]['parameters'])} parameters."
    return f"{markdown(head, rows)}\n\n{said}"


def main() -> None:
    file, steps = pathlib.Path(RESULTS.value), STEPS.value
    with user_errors():
        for name in ONLY.value:
            if name not in TIERS:
                raise ValueError(f"--only={name}: choose among {', '.join(TIERS)}")
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), {"tiers"})
    for name, recommended in RUNS:
        taken = round(steps * TIERS[name].longer)
        head = {"tier": name, "recommended": recommended, "steps": taken}
        there = any(head.items() <= line.items() for line in read(file))
        if name in ONLY.value and not there:
            write(file, head | run(name, recommended, taken))
            say(f"{name}: done")
    if PAGE.value:
        with user_errors():
            fill(pathlib.Path(PAGE.value), {"tiers": tiers_table(read(file))})


if __name__ == "__main__":
    startup.run(main)
