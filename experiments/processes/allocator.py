"""An allocator that keeps freed memory, for JAX on a CPU.

XLA for CPUs allocates the buffers of a step again in each step. The C library returns
memory of that size to the system at once, so every page is faulted and zeroed again: a
third of the CPU time of a small model. mimalloc can be told to keep freed memory. An
allocator can be chosen only while a process starts, so a command starts itself again before
it imports JAX, which costs about 50 ms.
"""

import importlib.metadata
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

SETTINGS = {
    "MIMALLOC_PURGE_DELAY": "-1",  # never give memory back to the system
    # A step's buffer may be larger than 2 GiB, the largest that mimalloc keeps by itself.
    "MIMALLOC_ARENA_MAX_OBJECT_SIZE": str(1 << 30),  # KiB
    # Small arenas: small objects do not settle where the step's buffer must fit again.
    "MIMALLOC_ARENA_RESERVE": str(1 << 16),  # KiB
    # No huge pages: they make later steps no faster, and the first takes 2.3 s, not 1.3.
    "MIMALLOC_ALLOW_THP": "0",
}
# This command holds a model once and takes no step: what it has freed must go back, or the
# process grows by more than the model. glibc gives back at once what is larger than this.
LEAN, GIVES_BACK = "experiments.import_hf", {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
ACCELERATORS = ("nvidia0", "accel0", "vfio/0", "kfd")  # in /dev; vfio: newer TPUs


def preload() -> None:
    """Start this process again under mimalloc and in UTF-8, unless it already is."""
    needed = {}
    if is_loaded():
        os.environ.pop("LD_PRELOAD", None)  # child processes choose for themselves
    else:
        needed = lacking(sys.orig_argv, os.environ, pathlib.Path("/dev"))
    # In another encoding, Python cannot hand a path or a prompt to JAX's libraries.
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        needed["PYTHONUTF8"] = "1"
    if needed:
        os.execve(sys.executable, sys.orig_argv, SETTINGS | os.environ | needed)


def lacking(
    argv: Sequence[str], environ: Mapping[str, str], dev: pathlib.Path
) -> dict[str, str]:
    """Return what the environment of a command lacks for its allocator."""
    if LEAN in argv:
        return {name: x for name, x in GIVES_BACK.items() if name not in environ}
    library = find_library() if is_wanted(argv, environ, dev) else None
    return {"LD_PRELOAD": library} if library else {}


def preallocate(share: float | None) -> None:
    """Tell JAX how much of a GPU's memory to take at the start; None: leave it as it is."""
    if share is None:
        return
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true" if share else "false"
    if share:
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(share)


def told(platform: str, environ: Mapping[str, str] = os.environ) -> str:
    """Name the allocator of a platform's memory, for the summary of a run."""
    if platform == "cpu":
        return "mimalloc" if is_loaded() else "system"
    if platform != "gpu":
        return "XLA's own"
    if kind := environ.get("XLA_PYTHON_CLIENT_ALLOCATOR"):
        return kind
    if environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "true").lower() in ("false", "0"):
        return "BFC, as needed"
    share = float(environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75"))
    return f"BFC, {share:.0%} of the memory taken at the start"


def find_library() -> str | None:
    try:
        package = importlib.metadata.distribution("cmeel-mimalloc")
    except importlib.metadata.PackageNotFoundError:
        return None
    path = pathlib.Path(package.locate_file("cmeel.prefix/lib/libmimalloc.so"))
    return str(path) if path.exists() else None


def is_wanted(argv: Sequence[str], environ: Mapping[str, str], dev: pathlib.Path) -> bool:
    """Tell whether JAX will run on a CPU and the user has chosen no allocator."""
    if environ.get("LD_PRELOAD") or re.search(r"--?allocator[= ]system\b", " ".join(argv)):
        return False
    platforms = environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" or (platforms == "" and not has_accelerator(dev))


def has_accelerator(dev: pathlib.Path) -> bool:
    return any((dev / name).exists() for name in ACCELERATORS)


def is_loaded() -> bool:
    """Tell whether mimalloc really serves this process."""
    maps = pathlib.Path("/proc/self/maps")
    return maps.exists() and b"libmimalloc" in maps.read_bytes()
