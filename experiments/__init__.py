"""What people run. `python -m experiments.NAME` first gets the allocator that suits JAX."""

import sys

from experiments.processes.allocator import preload

# Python names the module only after it has imported this package. A program that imports
# it (a test, a notebook) is never started anew.
if sys.argv[:1] == ["-m"]:
    preload()
