"""Mistakes in what people write: every one that our models find is explained in our own words."""

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from pipelines.boundary.mistakes import ELEMENT, NAME, SENTENCES, FileFormat, tables_of
from pipelines.boundary.toml import MAX_PROBLEMS
from pipelines.mapping import source_files
from pipelines.notify import rule_file
from pipelines.reputation import cases, policy_file
from pipelines.settings import Settings

FORMATS = [
    policy_file._WITH_VERSIONS,
    policy_file._WITH_ONE_VERSION,
    cases._FORMAT,
    rule_file._FORMAT,
    source_files._FORMAT,
    FileFormat(Settings, "settings"),
]
WRONG: list[Any] = [
    *("", "x" * 400, "a b!", "2020-01-01", True, 1.5, Decimal("0.00000001"), -(10**7), 1, 10**9, float("nan")),
    *([], {}, [1], [True], ["", ""], [{"x": 1}], {"x": 1}, {"": 1}, {"A b!": 1}, {"kind": "x"}, {"kind": "webhook"}),
    *(Decimal("nan"), float("inf"), datetime(2020, 1, 1, tzinfo=UTC), date(2020, 1, 1), time(1)),
    *("9" * 5_000, "2020-01-01T00:00:00", {f"a{n}": 1 for n in range(200)}, {f"a{n}": {"from": "x"} for n in range(9)}),
]
"""Values of every type of TOML, most of them wrong almost anywhere."""
_THEIRS = re.compile(
    r"Input |Extra inputs|Field required|should (be|have|match)|valid (dictionary|string|tuple)|Unable to|Value error"
    r"|is not understood|\bDecimal\b|\bNone\b|discriminator"
)
"""Words of pydantic's own sentences, and of the one for a mistake that has none of ours."""


def problems(model: type[BaseModel]) -> Iterator[ValidationError]:
    """Yield the errors about each key of each table of a model, with each of the wrong values."""
    for place, table in tables_of(model):
        for name, field in table.model_fields.items():
            for wrong in WRONG:
                value = {field.alias or name: wrong}
                for part in reversed(place):
                    value = [value] if part == ELEMENT else {("n" if part == NAME else part): value}
                try:
                    model.model_validate(value)
                except ValidationError as error:
                    yield error


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.model.__name__)
def test_every_mistake_has_a_sentence_of_ours(form: FileFormat) -> None:
    """Of each key of each file, with a value of every type; a kind of error without a sentence fails here."""
    sentences = {line for error in problems(form.model) for line in form.explain(error, "", "f").splitlines()}
    assert len(sentences) > 20
    assert sorted(line for line in sentences if _THEIRS.search(line)) == []


def test_every_sentence_is_of_a_mistake_that_can_be_made() -> None:
    """A sentence that no model needs is removed."""
    models = {form.model for form in FORMATS}
    kinds = {problem["type"] for model in models for error in problems(model) for problem in error.errors()}
    assert SENTENCES.keys() - kinds == set()


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.model.__name__)
def test_only_the_mistakes_that_are_shown_are_explained(form: FileFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with thousands takes as long as one with a few: each took two milliseconds to explain."""
    explained: list[object] = []
    monkeypatch.setattr(FileFormat, "misplaced", lambda _form, path, _value: explained.append(path) or "is unknown")
    with pytest.raises(ValidationError) as caught:
        form.model.model_validate({f"key{number}": 1 for number in range(1_000)})
    text = form.explain(caught.value, "", "a.toml")
    assert 0 < len(explained) <= MAX_PROBLEMS
    assert text.splitlines()[-1].startswith("and ")
