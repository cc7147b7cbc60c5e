"""The operation: one convolution for the whole spectrum."""
