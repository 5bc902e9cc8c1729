"""Keep the optimizer's state in the host's memory between steps (Ren et al. 2021).

The state lies in JAX's memory kind `pinned_host`, which a device reads and writes itself. A
step copies it to the device once the gradients are there, and its new value back. (Ren et
al. do the update on the host too.) What is saved does not change.
"""

from collections.abc import Callable, Sequence

import jax
import optax
from jax.sharding import Mesh

from parallel.mesh import is_absent
from parallel.program import Params, Program, TrainState

HOST = "pinned_host"


def check_offload(mesh: Mesh) -> None:
    """Raise ValueError if the devices cannot reach the host's memory.

    Absent devices do not tell; they are TPUs, which can.
    """
    if not is_absent(mesh):
        device = mesh.devices.flat[0]
        check_kinds(device.device_kind, [x.kind for x in device.addressable_memories()])


def check_kinds(name: str, kinds: Sequence[str]) -> None:
    if HOST not in kinds:
        raise ValueError(
            f"parallel.offload=optimizer needs the memory kind {HOST}, and the device "
            f"{name} has {', '.join(kinds)}; set parallel.offload=none"
        )


def hosted(shardings: TrainState, shapes: TrainState) -> TrainState:
    """Return the shardings with the optimizer's arrays in the host's memory.

    A count of updates stays: it is a number, not an array.
    """
    opt = jax.tree.map(
        lambda place, x: place.with_memory_kind(HOST) if x.ndim else place,
        shardings.opt,
        shapes.opt,
    )
    return shardings._replace(opt=opt)


def moved(state: TrainState, to: TrainState) -> TrainState:
    return state._replace(opt=jax.tree.map(jax.device_put, state.opt, to.opt))


def fetching(near: TrainState, far: TrainState) -> tuple[Callable, Callable]:
    """Return what fetches a state's optimizer, given the gradients, and what stores it.

    Without the barrier a compiler would copy before the gradients are there, and hold the
    optimizer's state beside the activations. Their norm stands for all gradients, so that
    they themselves do not pass the barrier, which would part the update from them.
    """
    if near is far:
        return (lambda state, grads: state), (lambda state: state)

    def fetch(state: TrainState, grads: Params) -> TrainState:
        opt, _ = jax.lax.optimization_barrier((state.opt, optax.tree.norm(grads)))
        return moved(state._replace(opt=opt), near)

    return fetch, lambda state: moved(state, far)


def saved_near(program: Program, near: TrainState, far: TrainState) -> Program:
    """Return the program, which saves and takes back its state on the devices."""
    abstract = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        program.abstract,
        near,
    )
    return program._replace(
        portable=lambda state: program.portable(moved(state, near)),
        adopt=lambda state: moved(program.adopt(state), far),
        saved=program.saved or abstract,
    )
