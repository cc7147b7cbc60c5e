"""Compile every Triton kernel for two kinds of cards without a card, and print as JSON what each needs.

    python -m tests.conv.ahead_of_time 80

One record per kernel: its name, what it is compiled for, registers per thread, bytes of shared memory, bytes that
spill, and whether it has the instructions of matrix units.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spectrum.conv.kernels import triton_convolution, triton_kernels

POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
SIZES = (1, 2, 3, 4, 5, 8, 12, 16, 32, 43, 64)  # channels per segment
WINDOWS = ((3, 1, 1), (1, 1, 1), (5, 2, 1), (7, 1, 2))  # kernel, stride, dilation
ALIGNED = ("source_channels", "target_channels", "source_first", "target_first")  # multiples of 16, as most are


def compiled(kernel, constants, dtype, capability, options):
    """The kernel, compiled for numbers of this type; narrow segments are many, a multiple of 16."""
    aligned = (*ALIGNED, "count") if constants.get("SOURCE", 128) <= 8 else ALIGNED
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        is_tensor = name in ("x", "w", "y", "gy", "gw", "parts")
        if name in constants:
            signature[name] = "constexpr"
        else:
            signature[name] = ("*fp32" if name == "parts" else POINTERS[dtype]) if is_tensor else "i32"
            if is_tensor or name in aligned:
                attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(built):
    """Registers per thread, and bytes per thread that spill, as the assembler reports them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said).groups()
    return int(registers), int(stack)


def kernels_of(size, window, dtype, precision):
    """Name, kernel, constants and options of the kernels for segments of one size."""
    k, stride, dilation = window
    itemsize = torch.finfo(dtype).bits // 8
    tiles = triton_convolution.tiles_of(128 // size, size, size, itemsize)
    sides = [k, k, stride, stride, k // 2, k // 2, dilation, dilation]
    constants = triton_convolution.constants_of(sides, size, size, tiles, dtype)
    if "PRECISION" in constants:
        constants["PRECISION"] = precision
    options = triton_convolution.options_of(tiles, itemsize)
    way = "tiles" if tiles.together else "products"
    convolve, gradient = (getattr(triton_kernels, f"{what}_by_{way}") for what in ("convolve", "gradient"))
    yield "output", convolve, constants | {"IS_GRADIENT": False}, options
    yield "gradient of the input", convolve, constants | {"IS_GRADIENT": True}, options
    yield "gradient of the weights", gradient, constants, options


def main(capability):
    cases = [(size, WINDOWS[0], dtype) for size, dtype in itertools.product(SIZES, POINTERS)]
    cases += [(size, window, torch.float16) for size, window in itertools.product((2, 8, 32), WINDOWS[1:])]
    rows = []
    for size, window, dtype in cases:
        for precision in ("ieee", "tf32") if dtype == torch.float32 and size > 4 else ("ieee",):
            for name, kernel, constants, options in kernels_of(size, window, dtype, precision):
                built = compiled(kernel, constants, dtype, capability, options)
                registers, stack = resources(built)
                row = {"name": name, "size": size, "window": window, "dtype": str(dtype), "precision": precision}
                row |= {"registers": registers, "stack": stack, "shared": built.metadata.shared}
                rows.append(row | {"has_matrix_units": "mma" in built.asm["ptx"]})
    sums = compiled(triton_kernels.sum_of_parts, {"BLOCK": 256}, torch.float16, capability, {"num_warps": 4})
    registers, stack = resources(sums)
    json.dump({"kernels": rows, "sum_of_parts": {"registers": registers, "stack": stack}}, sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]))
