"""The reference pages say what the code says: a command or setting that is not documented fails here."""

import pytest

from pipelines.cli.reference import PAGES
from pipelines.settings import Settings
from tests.conftest import REPOSITORY


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
