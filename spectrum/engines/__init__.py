"""Engines, which train runs: local processes, a Ray cluster, the ranks of torchrun."""
