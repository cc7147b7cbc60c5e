"""What the environment says of backends. This module does not load torch."""

from __future__ import annotations

import os

VARIABLE = "SPECTRUM_BACKEND"
TUNE = "SPECTRUM_TUNE"


def backend_of_environment() -> str | None:
    """The value of `$SPECTRUM_BACKEND`; None if unset or empty. The name is not checked."""
    return os.environ.get(VARIABLE) or None


def tune_of_environment() -> str | None:
    """The value of `$SPECTRUM_TUNE`; None if unset or empty. It is not checked."""
    return os.environ.get(TUNE) or None
