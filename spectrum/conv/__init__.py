"""`SegmentedConv2d`: every convolution from regular to depthwise separable in one module."""
