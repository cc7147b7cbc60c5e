"""The backend named by the environment. This module does not load torch."""

from __future__ import annotations

import os

VARIABLE = "SPECTRUM_BACKEND"


def backend_of_environment() -> str | None:
    """The value of `$SPECTRUM_BACKEND`; None if unset or empty. The name is not checked."""
    return os.environ.get(VARIABLE) or None
