"""One training run: the loop, checkpoints, ranks, provenance."""
