"""The pool of a parameter server whose workers and shards are processes of Ray.

The process that trains gives all commands, and values travel between the others without it.
Ray runs the commands of one caller in their order, so all shards apply the same updates in
the same order, and a pull or a snapshot sees all shards after the same ones.

A worker has nothing that only it knows: what it keeps from push to push is returned with
the push. If it dies, its number goes back and another process takes its place.

A shard is a state machine (parallel/server/shard.py). The pool keeps the last snapshot of
each shard, and all commands since the snapshots of all shards were whole, with their
pushes. A shard that died begins from its snapshot and gets these commands again. Damaged
bytes are as a death: what they were for is done again.
"""

import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

import configs
import experiments
import lm
import parallel
from configs.base import Experiment
from experiments.asynchronous.bodies import Setup, ShardProcess, WorkerProcess
from experiments.asynchronous.sealed import opened, sealed
from experiments.processes.messages import say
from experiments.processes.ray_tasks import check_address, import_ray, start_ray
from experiments.run.build import whole_bytes
from experiments.run.survival.replicas import Damage
from parallel.server.kinds import Parts
from parallel.server.pool import Place, Pool
from parallel.server.shard import Push, Snapshot
from parallel.server.worker import Order, Private, Rows, Told

CODE = [pathlib.Path(module.__path__[0]) for module in (lm, parallel, configs, experiments)]
STORE_BYTES = 128 << 20  # of the object store, and what it holds of the run
MOST_DEATHS = 20  # of workers and shards without an update between them
Command = tuple  # the name of a shard's method, its arguments, what each shard gets besides


class Doing(NamedTuple):
    """What a worker does."""

    piece: int  # of the number's rows
    answers: list[Any]  # what it will return


class RayPool:
    def __init__(self, setup: Setup):
        """Raise ValueError if Ray is not installed; start nothing."""
        self.ray, self.setup = import_ray(), setup
        self.config = setup.config.parallel.server
        self.began_ray = False

    def start(
        self, shards: Sequence[Snapshot], privates: Sequence[Private], here: Sequence[int]
    ) -> None:
        if not self.ray.is_initialized():
            held = self.config.snapshot_every + 8 + 4 * self.config.workers
            store = STORE_BYTES + 2 * held * whole_bytes([each.params for each in shards])
            try:
                start_ray(self.ray, address(), self.config.workers, CODE, store)
            except ValueError as error:  # of the cluster, which has answered before
                raise ConnectionError(error) from None
            self.began_ray = True
        self.base = [self.ray.put(sealed(snapshot)) for snapshot in shards]
        self.log: list[Command] = []
        self.saving: tuple[int, list[Any]] | None = None
        self.shards = [self.new_shard(i) for i in range(len(shards))]
        self.workers = {worker: self.new_worker(worker) for worker in here}
        self.private = [self.ray.put(sealed(private)) for private in privates]
        # An error that each start would meet again shows here, and not as deaths.
        self.ray.get([actor.ping.remote() for actor in self.actors])
        self.deaths = 0  # since the last update
        self.doing: dict[int, Doing] = {}
        self.done: dict[Place, list[Any]] = {}
        self.merged: list[Place] = []

    @property
    def actors(self) -> list[Any]:
        return [*self.shards, *self.workers.values()]

    def join(self, worker: int) -> None:
        self.workers[worker] = self.new_worker(worker)

    def leave(self, worker: int) -> None:
        self.ray.kill(self.workers.pop(worker))
        self.doing.pop(worker, None)

    def new_worker(self, index: int) -> Any:
        actor = self.ray.remote(WorkerProcess)
        return actor.options(num_cpus=0, scheduling_strategy="SPREAD").remote(
            self.setup, index
        )

    def new_shard(self, index: int) -> Any:
        actor = self.ray.remote(ShardProcess).options(num_cpus=0)
        return actor.remote(self.setup, self.base[index])

    def send(self, index: int, command: Command) -> Any:
        """Send a command to a shard; return what stands for its answer."""
        name, arguments, each = command
        more = [values[index] for values in each]
        return getattr(self.shards[index], name).remote(*arguments, *more)

    def tell(self, name: str, *arguments: Any, each: Sequence[Sequence[Any]] = ()) -> list:
        """Send a command to all shards, and remember it for those that die."""
        command = (name, arguments, each)
        self.log.append(command)
        return [self.send(i, command) for i in range(len(self.shards))]

    def answers(self, sent: Sequence[Any]) -> list[Any]:
        """Return the answers of all shards to the last command."""
        found = []
        for index, answer in enumerate(sent):
            while True:
                try:
                    found.append(self.ray.get(answer))
                    break
                except Exception as error:
                    answer = self.revive(index, error)
        return found

    def revive(self, index: int, error: Exception) -> Any:
        """Begin a dead shard again; return what stands for its last answer.

        Any error but its death, or damage, is raised, and so is one death too many.
        """
        self.check_death(error)
        what = "got damaged bytes" if isinstance(error, Damage) else "died"
        say(f"server shard {index} {what}; another process takes over from its snapshot")
        self.shards[index] = self.new_shard(index)
        answer = None
        for command in self.log:
            answer = self.send(index, command)
        return answer

    def check_death(self, error: Exception) -> None:
        self.deaths += 1
        if not self.is_death(error) or self.deaths > MOST_DEATHS:
            raise error

    def is_death(self, error: Exception) -> bool:
        kinds = self.ray.exceptions
        lost = (
            *(kinds.RayActorError, kinds.ObjectLostError, kinds.WorkerCrashedError),
            Damage,
        )
        return isinstance(error, lost) or isinstance(getattr(error, "cause", None), lost)

    def launch(self, order: Order, rows: Rows) -> None:
        worker = order.worker
        pulled = self.tell("pull", worker, order.whole)
        compute = self.workers[worker].compute.options(num_returns=2 + len(self.shards))
        answers = compute.remote(order, self.private[worker], *pulled)
        self.doing[worker] = Doing(order.piece, answers)

    @property
    def now(self) -> float:
        return time.monotonic()

    def finished(self, until: float | None = None) -> tuple[int, Told | None] | None:
        told = {each.answers[0]: worker for worker, each in self.doing.items()}
        left = None if until is None else max(0.0, until - self.now)
        ready, _ = self.ray.wait(list(told), timeout=left)
        if not ready:
            return None
        first = ready[0]
        worker = told[first]
        piece, answers = self.doing.pop(worker)
        try:
            found = opened(self.ray.get(first), f"what worker {worker} told")
        except Exception as error:
            self.check_death(error)
            say(f"the work of worker {worker} is lost; its numbers are handed out again")
            self.heal(worker)
            return worker, None
        self.done[worker, piece] = answers[1:]
        return worker, found

    def heal(self, worker: int) -> None:
        """Replace what is dead: this worker, or a shard that it pulled from."""
        for index in range(len(self.shards)):
            try:
                self.ray.get(self.shards[index].ping.remote())
            except Exception as error:
                self.revive(index, error)
        try:
            self.ray.get(self.workers[worker].ping.remote())
        except self.ray.exceptions.RayActorError:
            self.workers[worker] = self.new_worker(worker)

    def merge(self, update: int, pushes: Sequence[Push]) -> list[float]:
        self.merged = [(push.worker, push.piece) for push in pushes]
        payloads = [self.done[place][1:] for place in self.merged]
        return self.answers(self.tell("merge", update, list(pushes), each=payloads))

    def apply(
        self, update: int, square: float, factor: float, loss: float, counts: bool
    ) -> float:
        rates = self.answers(self.tell("apply", update, square, factor, loss))
        self.deaths = 0
        for worker, piece in self.merged if counts else ():
            self.private[worker] = self.done[worker, piece][0]
        self.done.clear()
        if update % self.config.snapshot_every == 0:
            self.take_snapshots()
        return rates[0]

    def take_snapshots(self) -> None:
        """Use the snapshots asked for last, once all are whole; then ask for new ones."""
        if self.saving:
            number, saved = self.saving
            ready, _ = self.ray.wait(saved, num_returns=len(saved), timeout=0)
            if len(ready) < len(saved):
                return
            try:
                for each in self.ray.get(saved):
                    opened(each, "the snapshot of a shard")
            except Exception as error:  # the next ones will do
                if not self.is_death(error):
                    raise
            else:
                self.base, self.log = saved, self.log[number:]
        self.saving = len(self.log), [each.snapshot.remote() for each in self.shards]

    def snapshots(self) -> list[Snapshot]:
        found = []
        for index in range(len(self.shards)):
            while True:
                try:
                    got = self.ray.get(self.shards[index].snapshot.remote())
                    found.append(opened(got, f"the snapshot of shard {index}"))
                    break
                except Exception as error:
                    self.revive(index, error)
        return found

    def privates(self) -> list[Private]:
        return [
            opened(each, f"what worker {worker} kept")
            for worker, each in enumerate(self.ray.get(self.private))
        ]

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor)
        if self.began_ray:
            self.ray.shutdown()


def address() -> str:
    """Return where the cluster is that workers and shards run on; "": on this machine."""
    return os.environ.get("RAY_ADDRESS", "")


def pool_of(
    config: Experiment, vocab_size: int, mesh: Mesh
) -> Callable[[Parts], Pool] | None:
    """Return what makes the pool that the config asks for; None: that of this process.

    Raises ValueError if Ray is not installed, or no cluster is at its address.
    """
    if config.parallel.row.synchronous or config.parallel.server.pool == "here":
        return None
    import_ray()
    check_address(address())
    platform = mesh.devices.flat[0].platform
    setup = Setup(config, vocab_size, mesh.size, platform)
    return lambda parts: RayPool(setup)
