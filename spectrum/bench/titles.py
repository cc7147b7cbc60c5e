"""Titles of printed tables, in place of the column names in CSV files, which must stay as in the committed ones."""

from __future__ import annotations

import pandas as pd

COLUMNS = {
    "what": "measurement",
    "way": "implementation",
    "ms": "median_ms",
    "ms_q1": "q1_ms",
    "ms_q3": "q3_ms",
    "yardstick_ms": "roofline_ms",
    "lowering": "backend",
    "apart": "pass_ratio",
    "wall_seconds_a_point": "wall_seconds_per_run",
}
MEASUREMENTS = {"point": "run", "point on Ray": "run on Ray"}


def titled(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the titles of its columns and, if it has any, of its measurements.

    >>> titled(pd.DataFrame({"what": ["point", "load"], "ms": [14.0, 4096.0]})).to_dict("list")
    {'measurement': ['run', 'load'], 'median_ms': [14.0, 4096.0]}
    """
    if "what" in table:
        table = table.assign(what=table["what"].replace(MEASUREMENTS))
    return table.rename(columns=COLUMNS)
