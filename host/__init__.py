"""What surrounds a command: the machine it may use and what its user has set. Needs neither torch
nor numpy.

entry.py        the one way into every command
paths.py        the project's folders, and paths that a user types
cgroups.py      the limits of a container
cores.py        CPU cores that this process may use
interpreter.py  a sentence where Python is too old or lacks packages
workers.py      processes that share a work and never outlive it
owners.py       which process updates what, where optimizers are divided over processes
launcher.py     what torchrun tells a process
ending.py       how a command and its processes end when they are told to
"""
