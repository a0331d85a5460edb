"""Fixtures of the dashboard's tests."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _interactive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look like an interactive interpreter to pyspark, which marimo imports if an earlier test of this process did.

    In a process of pytest-xdist, whose main module has no file, that import would take the run for one of pyspark's
    doctests and end it.
    """
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
