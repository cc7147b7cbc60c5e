"""Benchmarks of the operation, a training step and a whole study: `spectrum bench op | train | sweep`.

Everything compared runs in alternating rounds, so that a machine that slows down affects all alike; medians and
quartiles are reported. A table is a DataFrame; `save` writes it with a description of the machine.
"""
