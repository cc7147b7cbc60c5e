"""Exact ways to compute a segmented convolution, one file each, a registry of them, and the rule that chooses one."""
