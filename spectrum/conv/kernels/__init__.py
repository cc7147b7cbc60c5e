"""Compiled kernels, each used only where it measured faster than every torch implementation (docs/performance.md)."""
