"""Measure the limit of this machine, of which utilisation is a share.

python -m experiments.studies.machine        # one line of JSON
"""

import json

import jax

from experiments.costs.machine import cores, product_limit
from experiments.processes import join
from experiments.processes.messages import user_errors
from experiments.run import startup

join.define_flags()


def main() -> None:
    with user_errors():
        join.start_jax()
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
