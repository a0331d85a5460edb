"""Tests of finding the store of a lake."""

import pytest

from pipelines.lake.stores import opened


def test_the_environment_is_asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is told of another endpoint does not go on with the first one, as its other libraries do not."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    first, path = opened("s3://lakes/mine")
    assert path == "lakes/mine"
    assert opened("s3://lakes/mine")[0] is first
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    assert not opened("s3://lakes/mine")[0].equals(first)
