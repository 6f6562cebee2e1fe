"""What surrounds a command: the machine it may use and what its user has set. Needs neither torch
nor numpy.

cores.py    CPU cores that this process may use
"""
