"""Compiled kernels, each only where it is measured faster than every library path (docs/performance.md)."""
