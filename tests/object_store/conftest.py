"""The lake on an object store: fixtures of the same names as elsewhere, for the same tests."""

import uuid
from collections.abc import Iterator

import pytest

from pipelines.lake.tables import Lake, create_lake
from pipelines.settings import Settings
from tests.services.object_store import BUCKET, ObjectStore


@pytest.fixture(scope="package")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """Return a store that the environment names, for as long as tests of this folder run."""
    with ObjectStore(tmp_path_factory.mktemp("objects")) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield store


@pytest.fixture
def uri(object_store: ObjectStore) -> str:
    """Return where a lake may be made."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}/lake"


@pytest.fixture
def lake(uri: str) -> Lake:
    """Return an empty lake."""
    return create_lake(uri)


@pytest.fixture
def settings(settings: Settings, uri: str) -> Settings:
    """Return settings as every test has them, with the lake on the store."""
    return settings.model_copy(update={"lake": settings.lake.model_copy(update={"uri": uri})})
