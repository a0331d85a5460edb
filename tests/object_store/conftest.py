"""Fixtures of a lake on an object store, with the names that tests of local lakes use."""

import uuid
from collections.abc import Iterator

import pytest

from pipelines.lake.tables import Lake, create_lake
from pipelines.settings import Settings
from tests.services.object_store import BUCKET, ObjectStore


@pytest.fixture(scope="package")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """Return an object store that the environment names while tests of this folder run."""
    with ObjectStore(tmp_path_factory.mktemp("objects")) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield store


@pytest.fixture
def uri(object_store: ObjectStore) -> str:
    """Return an unused URI for a lake."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}/lake"


@pytest.fixture
def lake(uri: str) -> Lake:
    """Return an empty lake."""
    return create_lake(uri)


@pytest.fixture
def settings(settings: Settings, uri: str) -> Settings:
    """Return the settings of all tests, with the lake on the object store."""
    return settings.model_copy(update={"lake": settings.lake.model_copy(update={"uri": uri})})
