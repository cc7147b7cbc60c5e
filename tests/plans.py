"""Plans that tests make up, as the text of plan.json would hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from spectrum.design.plan import Plan


def plan_of(fields: Mapping[str, Any]) -> Plan:
    """A plan of the keys that plan.json has; runs and choices without an id get one."""
    given = json.loads(json.dumps(fields))
    tuning = given.get("tuning", {})
    for entries in (given.setdefault("points", []), *(tuning.get(name, []) for name in ("networks", "points"))):
        for number, entry in enumerate(entries):
            entry.setdefault("id", f"{number:016x}")
    for number, choice in enumerate(tuning.get("choices", [])):
        choice.setdefault("id", f"{number:016x}")
    return Plan.from_json(json.dumps(given))
