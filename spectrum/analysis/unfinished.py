"""The runs of a plan as a table, and which of a comparison's runs have not ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from spectrum.analysis.pairing import NoRunsError
from spectrum.design.plan import Plan

NOT_COMPLETE = "not complete"  # the verdict on a comparison of which a planned run has not ended


def planned_table(plan: Plan) -> pd.DataFrame:
    """The final runs of a plan as `load_results` has them, without what only training tells; a row per budget.

    Args:
        plan: from `read_plan`. Of an early plan, which keeps no options of its runs, the table is empty.
    """
    tuned = " ".join(plan.tuned)
    rows: list[dict[str, Any]] = [
        {name: tuple(value) if isinstance(value, list) else value for name, value in run.asked_options.items()}
        | {"id": run.id, "match": run.match or "none", "budget_mismatch": run.mismatch, "searched": tuned}
        | {"params": run.params, "macs": run.macs, "realised_segments": run.realised_segments}
        for run in plan.runs
        if run.stored is not None
    ]
    return pd.DataFrame(rows)


def runs_there(
    results: pd.DataFrame, planned: pd.DataFrame, chosen: Callable[[pd.DataFrame], pd.DataFrame]
) -> tuple[int, int]:
    """How many of the planned runs of a comparison have a row, failed ones too, and how many are planned.

    Args:
        results: from `load_results`.
        planned: from `planned_table`; of an empty one nothing is known, and both numbers are zero.
        chosen: picks a comparison's rows from either table; raises NoRunsError where there are none.
    """
    if planned.empty or "id" not in results:
        return 0, 0
    try:
        due = set(chosen(planned)["id"])
    except NoRunsError:  # what no plan has is no run to wait for
        return 0, 0
    return len(due & set(results["id"])), len(due)
