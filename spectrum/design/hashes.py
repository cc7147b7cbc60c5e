"""A hash of plain values, by which runs, plans and rows are told apart."""

from __future__ import annotations

import hashlib
import json


def digest(value: object) -> str:
    """16 hex digits of what JSON can say; the order of keys changes nothing."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
