"""Where runs are trained: local processes, a Ray cluster, the ranks of torchrun."""
