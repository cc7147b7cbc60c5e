"""Registries in tests."""

import pytest

from spectrum._registry import Registry


def restored(monkeypatch: pytest.MonkeyPatch, *registries: Registry) -> None:
    """After the test they hold what they hold now."""
    for registry in registries:
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
