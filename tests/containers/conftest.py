from collections.abc import Iterator

import pytest

from tests.containers.engine import Engine, running_engine
from tests.containers.images import build_images


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Return the engine, with both images of this tree."""
    with running_engine(tmp_path_factory.mktemp("engine")) as running:
        build_images(running)
        yield running
