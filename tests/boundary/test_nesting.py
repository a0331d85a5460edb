"""The nesting depth of JSON is judged without a parser, in linear time."""

import pytest

from pipelines.boundary.nesting import is_nested_over


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("", 0),
        ("[{}]", 2),
        ("[" * 5 + "]" * 5, 5),
        ("[]" * 5, 1),
        ("]" * 5 + "[[", 0),
        ('["[[[["]', 1),
        ('["\\"[[[["]', 1),
        ('["\\\\"[[', 3),
        ('[["[[[', 2),
        ('[["\\', 2),
    ],
)
def test_the_depth_of_brackets_outside_strings(text: str, depth: int) -> None:
    """Also in malformed JSON: brackets that close too early, strings without an end."""
    assert not is_nested_over(text, depth)
    assert depth == 0 or is_nested_over(text, depth - 1)


@pytest.mark.parametrize("text", ["[" + '"' + '\\"' * 2_000_000, "[" * 2_000_000 + '"\\' * 1_000_000])
def test_a_long_text_is_judged_in_linear_time(text: str) -> None:
    """In a second, not in hours: a string without an end is looked through once."""
    assert is_nested_over("[" * 600 + text, 512)
