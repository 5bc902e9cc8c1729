"""What this machine can do at best, for utilisation to be a share of it.

python -m experiments.machine        # one line of JSON
"""

import json

import jax

from experiments import startup
from experiments.costs import cores, product_limit


def use_eight_devices() -> None:
    """Emulate eight devices where there is no accelerator; before JAX is first used."""
    jax.config.update("jax_num_cpu_devices", 8)


def main() -> None:
    startup.start_jax()
    device = jax.devices()[0]
    figures = {
        "device_kind": device.device_kind,
        "devices": len(jax.devices()),
        "cores": cores(),
        "product_limit": product_limit(),  # FLOP/s of one device; of a CPU, all cores
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    startup.run(main)
