"""What every family costs along the spectrum, at its reference size: `make golden` counts it anew.

tests/golden/models.json: family → segments → parameters, buffers of batch normalisation, MACs of one image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectrum import build_model, measure_cost

FILE = Path(__file__).parents[1] / "golden/models.json"
SIZES = {
    "inception": (32, 10),
    "inception_v3": (299, 1000),
    "mobilenet_v1": (224, 1000),
    "probe": (32, 10),
    "resnext": (224, 1000),
    "resnext_small": (32, 10),
    "vgg": (224, 1000),
    "xception": (299, 1000),
}
SEGMENTS: tuple[Any, ...] = (1, 3, 4, 32, "per_channel")


def buffers(model: nn.Module) -> int:
    """Numbers in running statistics."""
    return sum(b.numel() for name, b in model.named_buffers() if not name.endswith("num_batches_tracked"))


def counts(family: str, segments: Any) -> dict[str, int]:
    """Of one network, built without its numbers."""
    side, classes = SIZES[family]
    with torch.device("meta"):
        model = build_model(family, segments=segments, image_size=side, num_classes=classes)
    cost = measure_cost(model, (3, side, side))
    return {"params": cost.params, "buffers": buffers(model), "macs": cost.macs}


def table(family: str) -> dict[str, dict[str, int]]:
    """Of a family, by segments; of Inception V3, which has none, its one network."""
    along = SEGMENTS if family != "inception_v3" else ("per_channel",)
    return {str(segments): counts(family, segments) for segments in along}


if __name__ == "__main__":
    FILE.write_text(json.dumps({family: table(family) for family in SIZES}, indent=1) + "\n")
