"""Training on the machine at hand: what a step is made of, how it is fed and timed, whoever's rule
it is.

machine.py   what the machine is and can do      clock.py    training time, and its parts
feed.py      batches, ahead of the step          graphs.py   a pass as one CUDA graph
passes.py    forward and backward passes, in microbatches that fit the memory
"""
