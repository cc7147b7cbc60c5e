"""Speed, measured: of the operation, of a training step, of a whole study. `spectrum bench op | train | sweep`.

Everything that is compared runs in alternating rounds, so that a machine that grows slow does so for all; medians and
quartiles are kept. A table is a DataFrame; `save` writes it with the machine that it was measured on.
"""
