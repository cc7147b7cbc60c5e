"""Training settings of the Xception paper, as values of a RunConfig's fields.

From Chollet 2017 (arXiv:1610.02357), section 4.2. Two settings are not in the paper. The decay of the averaged weights
is that of TensorFlow's own training of Inception V3 (slim). The batch size must be set by the run. The paper trains
without the auxiliary tower, as this package always does. On JFT it also trains with two fully connected layers of 4096
before the classifier: `hidden = [4096, 4096]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_IMAGENET: dict[str, Any] = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": False,
    "lr": 0.045,
    "schedule": "exponential",
    "decay": 0.94,
    "decay_epochs": 2.0,
    "weight_decay": 1e-5,  # tuned for Xception
    "dropout": 0.5,
    "ema": 0.9999,
}
RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "imagenet_xception": _IMAGENET,
        "imagenet_inception": _IMAGENET | {"weight_decay": 4e-5},  # tuned for Inception V3
        "jft": {
            "optimizer": "rmsprop",
            "momentum": 0.9,
            "lr": 0.001,
            "schedule": "exponential",
            "decay": 0.9,
            "decay_images": 3_000_000,
            "weight_decay": 1e-5,  # Xception's; Inception V3 had 4e-5
            "dropout": 0.0,
            "ema": 0.9999,
        },
    }
)
