"""The prose linter finds its phrases, and only those, and none in this tree."""

import pytest

from tests.words import files, hits, report


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("retained for\never", ["for ever"]),
        ("def test_nobody_listens", ["nobody"]),
        ("The index is made anew.", ["anew"]),
        ("a time that is no number", ["is no number"]),
        ("lake.spare(rows)", [".spare("]),
        ("recommend it; amended; there is no event; renewal; foreverglades", []),
    ],
)
def test_a_phrase_is_found(text: str, found: list[str]) -> None:
    """Across line breaks, in identifiers, in any case; never within another word."""
    assert [words for _, words, _ in hits(text)] == found


def test_a_hit_names_line_and_better_words() -> None:
    """A contributor can act on the line that is printed."""
    assert list(hits("fine\nmend it\n")) == [(2, "mend", "fix, repair, correct")]


def test_every_kind_of_text_is_read() -> None:
    """Code, pages, statements, settings and notebooks are among the files that are checked."""
    assert {".py", ".md", ".sql", ".toml", ".ipynb"} <= {path.suffix for path in files()}


@pytest.mark.slow
def test_the_tree_is_clean() -> None:
    """What `make lint` checks: no phrase of the earlier vocabulary is left."""
    assert report() == []
