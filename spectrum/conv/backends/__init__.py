"""Exact implementations (backends) of a segmented convolution, one file each, and the rule that chooses one."""
