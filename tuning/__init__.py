"""The counts that fit: a model measured alone, a simulation of the pool, real servers under load, and what follows.

Runs in:  the command line, and the processes that it starts.
"""
