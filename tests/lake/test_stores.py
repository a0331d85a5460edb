"""Resolving the store of a lake."""

import pytest

from pipelines.lake.stores import resolve_store


def test_the_environment_is_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed endpoint takes effect at once, as it does in the other libraries that open the lake."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    first, path = resolve_store("s3://lakes/mine")
    assert path == "lakes/mine"
    assert resolve_store("s3://lakes/mine")[0] is first
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    assert not resolve_store("s3://lakes/mine")[0].equals(first)
