"""Benchmarks of the operation, training, a whole study, Xception and the engine: `spectrum bench --help` lists them.

Everything compared runs in alternating rounds, so that a machine that slows down affects all alike; medians and
quartiles are reported. A table is a DataFrame; `save` writes it with a description of the machine.
"""
