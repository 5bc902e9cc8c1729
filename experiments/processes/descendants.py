"""Find the processes that descend from one, by what they call themselves. Linux only."""

import pathlib

# How Ray calls the processes of a parameter server.
SERVER = {"worker": "ray::WorkerProcess", "shard": "ray::ShardProcess"}


def descendants(ancestor: int, title: str) -> list[int]:
    """Return the ids, in order, of those whose title begins like this."""
    parents, named = {}, []
    for folder in pathlib.Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            told = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            own = (folder / "cmdline").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has ended
            continue
        parents[int(folder.name)] = int(told.rpartition(")")[2].split()[1])
        if own.startswith(title):
            named.append(int(folder.name))

    def descends(pid: int) -> bool:
        return pid == ancestor or (pid in parents and descends(parents[pid]))

    return sorted(pid for pid in named if descends(pid))
