"""A study: points along the spectrum, trained alike."""
