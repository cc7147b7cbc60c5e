"""A study: runs along the spectrum, trained alike."""
