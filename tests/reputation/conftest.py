"""Fixtures of the tests of scores: a notebook's shell."""

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.testing.globalipapp import start_ipython

from pipelines.reputation.warehouse import Warehouse


@pytest.fixture
def shell(warehouse: Warehouse) -> InteractiveShell:
    """Return a notebook's shell that has the magic, and the test's warehouse as `warehouse`."""
    shell = start_ipython() or InteractiveShell.instance()
    shell.user_ns.clear()
    shell.user_ns["warehouse"] = warehouse
    shell.run_line_magic("reload_ext", "karmalake")
    return shell
