"""Loss and accuracy of a trained network, and a hash of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spectrum.data.pixels import Pixels, in_turn
from spectrum.training.ranks import ALONE, Ranks

EVALUATION_BATCH = 500  # images per batch, unless they are large
EVALUATION_PIXELS = 2**21  # largest number of pixels per batch


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    x_nchw: Pixels,
    y_n: Tensor,
    *,
    device: torch.device | str,
    ranks: Ranks = ALONE,
) -> tuple[float, float]:
    """Compute mean cross-entropy in nats and accuracy from 0 to 1, in evaluation mode; each image counts once."""
    model.eval()
    loss, correct = 0.0, 0
    height, width = x_nchw.shape[2:]
    batch = min(EVALUATION_BATCH, max(1, EVALUATION_PIXELS // (height * width)))
    parts = ranks.part(torch.arange(len(y_n))).split(batch)
    for part, x_nhwc in zip(parts, in_turn(x_nchw, parts), strict=True):
        x, y = x_nhwc.permute(0, 3, 1, 2).to(device), y_n[part].to(device)
        logits = model(normalise(x).contiguous(memory_format=torch.channels_last))
        loss += cross_entropy(logits, y, reduction="sum").item()
        correct += int((logits.argmax(1) == y).sum())
    loss, right, seen = ranks.sum(loss, correct, sum(map(len, parts)))
    assert seen == len(y_n), "each image is counted once"
    return loss / len(y_n), right / len(y_n)


def hash_weights(model: nn.Module) -> str:
    """SHA-256 of the names, shapes, types and bytes of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
