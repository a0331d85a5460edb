"""Texts that are values of another kind, not ids, whatever file or topic they come from."""

import json
from typing import Any

import pyarrow as pa
from pyarrow import compute

from pipelines.boundary.toml import abbreviate

pc: Any = compute  # its functions are generated at import, invisible to pyright
_ROUNDED_NUMBER = r"^-?[0-9](?:[.,][0-9]+[eE]\+?|[eE]\+)[0-9]{1,3}$"
"""A large number as spreadsheets and floats write it, also with a decimal comma: its last digits are lost."""
_NESTED = ("{", "[")
_NO_ID = rf"{_ROUNDED_NUMBER}|^[{{\[]"


def problems_of_ids(texts: pa.Array) -> dict[int, str]:
    """Return by row what a text is instead of an id: a rounded number, or a list or an object of JSON."""
    rows = pc.indices_nonzero(pc.match_substring_regex(texts, _NO_ID)).to_pylist()
    problems = {row: _problem_of_id(texts[row].as_py()) for row in rows}
    return {row: problem for row, problem in problems.items() if problem}


def _problem_of_id(text: str) -> str | None:
    shown = abbreviate(text)
    if not text.startswith(_NESTED):
        return f"{shown} is a rounded number, not an id: write all digits"
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return None  # such as [deleted]
    return f"{shown} is a list or an object, not an id: name the member that is the id"
