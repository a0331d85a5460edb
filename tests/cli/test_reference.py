"""The reference pages match the code: an undocumented command or setting fails."""

import inspect
import re

import pytest

from docs._site.reference import PAGES
from docs._site.reference_api import MODULES
from docs._site.reference_tables import lake_columns, tables_page, warehouse_columns
from pipelines.contract.rejection import Reason
from pipelines.reputation.column_help import table_descriptions
from pipelines.reputation.warehouse import Warehouse
from pipelines.serving import keys
from pipelines.settings import Settings
from tests.conftest import REPOSITORY

_NAMES = {"prefix": "{prefix}", "user_id": "{user_id}", "view": "{view}", "slot": 0}


def _docs(name: str) -> str:
    return (REPOSITORY / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_matches_the_code(name: str) -> None:
    """`make docs` would change nothing."""
    assert (REPOSITORY / "docs" / name).read_text(encoding="utf-8") == PAGES[name]()


def test_summaries_of_commands_are_whole_sentences() -> None:
    """In the lists of commands no summary is cut off."""
    lists = re.findall(r"\*\*Commands\*\*:\n\n((?:\* .*\n)+)", _docs("cli.md"))
    summaries = [line for one in lists for line in one.splitlines()]
    assert len(summaries) > 50
    assert [line for line in summaries if not re.search(r"[^.]\.$", line)] == []


def test_every_setting_is_explained() -> None:
    """Each setting has a description, which the page shows."""
    sections = [field.annotation for field in Settings.model_fields.values()]
    fields = [
        (section.__name__, name, field)
        for section in sections
        if hasattr(section, "model_fields")
        for name, field in section.model_fields.items()
    ]
    assert fields
    assert [(section, name) for section, name, field in fields if not field.description] == []


@pytest.mark.slow
def test_every_table_and_column_is_explained() -> None:
    """The page matches the tables: a column without a description, or the reverse, fails."""
    assert _docs("tables.md") == tables_page()
    descriptions = table_descriptions()
    for place, found in (("lake", lake_columns()), ("warehouse", warehouse_columns())):
        assert set(descriptions[place]) == set(found)
        assert {name: set(table["columns"]) for name, table in descriptions[place].items()} == {
            name: set(columns) for name, columns in found.items()
        }


def test_the_public_python_api_is_documented() -> None:
    """Every module of `karmalake`, its documented names, and every public method of a warehouse, have a heading."""
    page = _docs("api.md")
    files = {path.stem for path in (REPOSITORY / "karmalake").glob("*.py")} - {"__init__", "__main__"}
    assert set(MODULES) == {"karmalake", *(f"karmalake.{name}" for name in files)}
    assert [module for module in MODULES if f"\n## `from {module} import ...`\n" not in page] == []
    public = [name for name, value in vars(Warehouse).items() if name[0] != "_" and inspect.isfunction(value)]
    headings = [*(name for names in MODULES.values() for name in names), *(f"Warehouse.{name}" for name in public)]
    assert len(headings) > 30
    assert [name for name in headings if f"# {name}\n" not in page] == []


def test_every_redis_key_is_explained() -> None:
    """Every key pattern of `keys.py` is in the table of the page, with the same placeholders."""
    page = _docs("redis.md")
    makers = {name: value for name, value in vars(keys).items() if name.endswith("_key")}
    assert len(makers) == 4
    for maker in makers.values():
        key = maker(**{parameter: _NAMES[parameter] for parameter in inspect.signature(maker).parameters})
        text = key.decode() if isinstance(key, bytes) else key
        assert f"| `{re.sub(r'{[0-9]+}', '{N}', text)}` |" in page


def test_every_reason_is_explained() -> None:
    """Every reason code of dead letters is on the page about the contract."""
    assert [reason for reason in Reason if f"`{reason.value}`" not in _docs("contract.md")] == []
