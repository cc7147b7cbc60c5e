"""What tests of the Triton kernels share: geometries of all kinds, and the convolution by its definition in float64."""

import torch
import torch.nn.functional as F

from spectrum.conv.backends.interface import Geometry
from spectrum.conv.segments import segment_runs, spatial_sizes

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Largest error of one rounding of a result, in units of its size; sums are in float32. The interpreter cuts the lower
# half of a float32 off where a card rounds to bfloat16, which doubles it.
ROUNDING = {torch.float32: 2.0**-20, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}


def geometry(in_channels, out_channels, segments, kernel=3, stride=1, dilation=1, padding=None):
    """A geometry from whole numbers or pairs; padding is "same" by default."""
    kernel, stride, dilation = (n if isinstance(n, tuple) else (n, n) for n in (kernel, stride, dilation))
    if padding is None:
        padding = tuple(far * (k // 2) for far, k in zip(dilation, kernel, strict=True))
    runs = segment_runs(*spatial_sizes(in_channels, out_channels, segments))
    return Geometry(runs, kernel, stride, padding, dilation)


CASES = {
    "per channel": geometry(6, 6, "per_channel"),
    "per channel, more outputs": geometry(3, 6, "per_channel", 5),
    "2 per segment": geometry(8, 8, 4, stride=2),
    "3 per segment": geometry(9, 9, 3, dilation=2),
    "4 per segment": geometry(8, 8, 2, 1, stride=2),
    "4 in, 8 out": geometry(8, 16, 2),
    "8 in, 4 out": geometry(16, 8, 2, stride=2),
    "5 per segment": geometry(20, 20, 4),
    "8 per segment": geometry(24, 24, 3, stride=2),
    "8 per segment, 5×5": geometry(16, 16, 2, 5, stride=2, dilation=2),
    "16 per segment": geometry(32, 32, 2, (1, 3), stride=(2, 1)),
    "32 per segment": geometry(32, 32, 1, padding=(0, 2)),
    "wide": geometry(40, 72, 1, 1),
    "uneven": geometry(11, 11, 4, stride=2),
    "runs of all kinds": geometry(22, 22, (1, 1, 2, 2, 6, 10)),
    "7×7": geometry(5, 5, 1, 7, stride=(1, 2)),
}


def definition(x_nchw, weights, geometry):
    """The convolution of the padded input, one segment after another, in float64."""
    vertical, horizontal = geometry.padding
    x_nchw = F.pad(x_nchw.double(), (horizontal, horizontal, vertical, vertical))
    start, parts = 0, []
    for run, weight in zip(geometry.runs, weights, strict=True):
        for kernel in weight.double().split(run.out_size):
            part = x_nchw[:, start : start + run.in_size]
            parts.append(F.conv2d(part, kernel, None, geometry.stride, 0, geometry.dilation))
            start += run.in_size
    return torch.cat(parts, dim=1)


def tensors(geometry, dtype=torch.float32, device="cpu", side=(5, 4), images=2, seed=0):
    """Input, output gradient, and weights of this type, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, sum(run.count * run.in_size for run in geometry.runs), *side)
    shapes = (shape, geometry.output_shape(shape), *geometry.weight_shapes)
    numbers = [torch.randn(shape, generator=generator) for shape in shapes]
    x_nchw, gy_nchw, *weights = (tensor.to(device, dtype) for tensor in numbers)
    return x_nchw.contiguous(memory_format=torch.channels_last), gy_nchw, weights


def results(function, x_nchw, gy_nchw, weights):
    """Output, and gradients of the input and each weight."""
    inputs = [tensor.detach().requires_grad_() for tensor in (x_nchw, *weights)]
    y_nchw = function(inputs[0], inputs[1:])
    return [y_nchw.detach(), *torch.autograd.grad(y_nchw, inputs, gy_nchw.to(y_nchw.dtype))]


def assert_near(ours, exact, dtype):
    """Each tensor within a rounding of the exact one, in units of its largest number."""
    for part, (mine, true) in enumerate(zip(ours, exact, strict=True)):
        assert mine.dtype == dtype
        error = (mine.double() - true.double()).abs().max().item()
        allowed = ROUNDING[dtype] * true.abs().max().item()
        assert error <= allowed, f"part {part} (0 is the output, then gradients): off by {error}, allowed {allowed}"
