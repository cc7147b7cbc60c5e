"""Files of trained weights, beside the rows of a study, and their hash. Needs no torch.

weights/<id of the run>.safetensors     below a study's folder
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectrum._files import reason_of

WEIGHTS = "weights"
KEPT = "kept_weights"  # key of a row's provenance: what a kept network needs beside its weights
SUFFIX = ".safetensors"
LENGTH = 8  # bytes of the number with which a safetensors file begins: the length of its header
TYPES = {  # types of safetensors by their names in torch
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{"BF16": "bfloat16", "BOOL": "bool", "C64": "complex64"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}


def weights_of(folder: Path, id: str) -> Path:
    """File of a run's weights. Raises ValueError for an id that is no name of a file, since rows come from anywhere."""
    if not id.isalnum():
        raise ValueError(f"{id!r}: is not the id of a run; expected 16 letters and digits")
    return folder / WEIGHTS / f"{id}{SUFFIX}"


def sha256_of(data: bytes) -> str:
    """SHA-256 of the tensors of a safetensors file, as `hash_weights` computes it of a network.

    Raises ValueError for bytes that are no such file.
    """
    try:
        length = int.from_bytes(data[:LENGTH], "little")
        tensors = json.loads(data[LENGTH : LENGTH + length])
        first = LENGTH + length
        digest = hashlib.sha256()
        for name, tensor in sorted(tensors.items()):
            start, end = _place(tensor, len(data) - first)
            shape = tuple(map(int, tensor["shape"]))
            digest.update(f"{name} torch.{TYPES[tensor['dtype']]} {shape}\n".encode())
            digest.update(memoryview(data)[first + start : first + end])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"is not a file of weights ({type(error).__name__}: {error})") from None
    return digest.hexdigest()


def fault_of_weights(path: Path, row: Mapping[str, Any]) -> str | None:
    """What is wrong with the weights that a row says it has; None if they are those that were scored."""
    try:
        found = sha256_of(path.read_bytes())
    except OSError as error:
        return f"cannot be read ({reason_of(error)})"
    except ValueError as error:
        return str(error)
    return None if found == row.get("weights_sha256") else "holds other weights than those that its row records"


def _place(tensor: Any, most: int) -> tuple[int, int]:
    """The first byte of a tensor and the one after its last. Raises ValueError for bytes that a cut file lacks."""
    start, end = tensor["data_offsets"]
    if not 0 <= start <= end <= most:
        raise ValueError("it is incomplete")
    return start, end
