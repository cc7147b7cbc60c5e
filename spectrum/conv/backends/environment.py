"""The backend that the environment names. Nothing here loads torch."""

from __future__ import annotations

import os

VARIABLE = "SPECTRUM_BACKEND"


def backend_of_environment() -> str | None:
    """`$SPECTRUM_BACKEND`; None where it is unset or empty. Whether there is such a backend is not looked at."""
    return os.environ.get(VARIABLE) or None
