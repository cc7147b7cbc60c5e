"""Hash of plain values, which identifies runs, plans and rows."""

from __future__ import annotations

import hashlib
import json


def digest(value: object) -> str:
    """16 hex digits of a hash of JSON values; the order of keys has no effect."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
