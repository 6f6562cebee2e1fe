"""A training step on the machine at hand: how it is compiled, fed and timed.

machine.py       the device: names, precision, peak of a matrix product, memory
program.py       the compiled passes, in microbatches that fit the memory
graphs.py        a pass as one CUDA graph
feed.py          batches, ready before the step asks for them
clock.py         training time and its parts
provenance.py    what is needed to repeat a run: commit, versions, program text
command_line.py  flags from dataclasses
"""

import host.interpreter  # noqa: F401  # isort: skip
