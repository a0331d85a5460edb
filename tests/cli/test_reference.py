"""The reference pages say what the code says: a command or setting that is not documented fails here."""

import inspect
import tomllib

import pytest

import pipelines
from docs._site.reference import PAGES
from docs._site.reference_tables import MEANINGS, lake_columns, tables_page, warehouse_columns
from pipelines.contract.rejection import Reason
from pipelines.reputation.warehouse import Warehouse
from pipelines.serving import keys
from pipelines.settings import Settings
from tests.conftest import REPOSITORY

_NAMES = {"prefix": "{prefix}", "user_id": "{user_id}", "view": "{view}"}


def _docs(name: str) -> str:
    return (REPOSITORY / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_code_says(name: str) -> None:
    """`make docs` would change nothing."""
    assert (REPOSITORY / "docs" / name).read_text(encoding="utf-8") == PAGES[name]()


def test_every_setting_is_explained() -> None:
    """Each setting has a sentence where it stands, which is what the page shows."""
    sections = [field.annotation for field in Settings.model_fields.values()]
    fields = [
        (section.__name__, name, field)
        for section in sections
        if hasattr(section, "model_fields")
        for name, field in section.model_fields.items()
    ]
    assert fields
    assert [(section, name) for section, name, field in fields if not field.description] == []


def test_every_table_and_column_is_explained() -> None:
    """The page is made of the tables as they are; a column without a meaning, or a meaning without one, fails."""
    assert _docs("tables.md") == tables_page(REPOSITORY)
    meanings = tomllib.loads((REPOSITORY / MEANINGS).read_text(encoding="utf-8"))
    for place, found in (("lake", lake_columns()), ("warehouse", warehouse_columns())):
        assert set(meanings[place]) == set(found)
        assert {name: set(table["columns"]) for name, table in meanings[place].items()} == {
            name: set(columns) for name, columns in found.items()
        }


def test_everything_at_the_python_door_is_explained() -> None:
    """Every name of `from pipelines import ...`, and every public method of a warehouse, has its heading."""
    page = _docs("api.md")
    public = [name for name, value in vars(Warehouse).items() if name[0] != "_" and inspect.isfunction(value)]
    headings = [*pipelines.__all__, *(f"Warehouse.{name}" for name in public)]
    assert len(headings) > 15
    assert [name for name in headings if f"# {name}\n" not in page] == []


def test_every_redis_key_is_explained() -> None:
    """Whatever `keys.py` makes a key with is in the table of the page, with the same placeholders."""
    page = _docs("redis.md")
    makers = {name: value for name, value in vars(keys).items() if name.endswith("_key")}
    assert len(makers) == 3
    for maker in makers.values():
        key = maker(**{parameter: _NAMES[parameter] for parameter in inspect.signature(maker).parameters})
        assert f"| `{key.decode() if isinstance(key, bytes) else key}` |" in page


def test_every_reason_is_explained() -> None:
    """A dead letter's code is looked up on the page about the contract."""
    assert [reason for reason in Reason if f"`{reason.value}`" not in _docs("contract.md")] == []
