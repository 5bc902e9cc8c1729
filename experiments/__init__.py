"""The commands: `python -m experiments.NAME` starts under an allocator that suits JAX."""

import sys

from experiments.processes.allocator import preload

# While `python -m` imports this package, argv[0] is still "-m". A program that imports the
# package (a test, a notebook) has another argv[0] and is not started again.
if sys.argv[:1] == ["-m"]:
    preload()
