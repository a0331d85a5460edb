from collections.abc import Iterator

import dagster as dg
import pytest

from assets.resources import Karmalake
from pipelines.settings import Settings


@pytest.fixture
def karmalake(settings: Settings) -> Karmalake:
    return Karmalake(lambda: settings)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral
