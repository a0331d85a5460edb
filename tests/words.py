"""A prose linter for this tree: phrases of an earlier vocabulary, each with the plain words that replace it.

`python -m tests.words`, a part of `make lint`, prints each hit as path:line and exits 1 if there is one. The terms are
in docs/glossary.md; codespell checks the spelling. All text that people read is searched: Markdown, Python, SQL, TOML,
YAML, HTML and notebooks, identifiers included.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
_SUFFIXES = {".py", ".pyi", ".md", ".sql", ".toml", ".ipynb", ".yaml", ".yml", ".html", ".svg", ".proto", ""}
_EXCLUDED = (
    "CHANGELOG.md",  # a record of what earlier names were
    "LICENSE",
    "benchmarks/results/",
    "pipelines/contract/releases/",
    "tests/fuzz/seeds/",
    "tests/test_words.py",
    "tests/words.py",
)

# A pattern, and what to write instead. A pattern matches whole words, in any case; `_` counts as a boundary of words.
# A space in a pattern matches `_`, white space and the line breaks of text and comments.
_PHRASES = {
    "for ever": "indefinitely, permanently",
    "anew": "again, or the verb: rebuilt, recomputed, republished",
    "mend(s|ed|ing)?": "fix, repair, correct",
    "(?<![\"'`-])(whoever|nobody|somebody|everybody|anybody)(?![\"'`-])": (
        "the role (reader, publisher, operator), or no one, everyone"
    ),
    "for good": "permanently",
    "in vain": "without success",
    "(this|that|the) very": "this, the same, exactly",
    "of theirs": "their",
    "(is|are|was|were) told": "is notified, receives, is reported",
    "(lie|lies|lay|lying) behind": "remain, are unread",
    "cannot be meant": "is invalid",
    "an affair": "a concern",
    "in the midst": "during",
    "mischief": "anomalies",
    "disturb(s|ed|ing)?": "inject faults, interrupt",
    "(?<!there.)(is|are|was|were) no (event|number|time|id|text|query|integer|address|file|folder|lake|row|url)s?": (
        "is not a ..., is not a valid ..."
    ),
    "what (is|was) no event": "records rejected, with the reason",
    "did not let us in": "authentication failed",
    "lets? nobody in": "refuses to authenticate",
    "at the 99th of a hundred": "p99",
    "departs from the design": "deviates from the original design",
    "rubbish": "invalid records",
    "be it": "whether",
    "of late": "recent, recently",
    "cry wolf": "raise false alarms",
    "by chance": "at random",
    "has to be allowed": "needs permission for",
    "to the last digit": "exactly",
    "wants? to be told": "subscribes to",
    "it is well": "it is healthy",
    "s of the processor": "s of CPU time",
    "what went": "the removed rows, events or users",
    "without a word": "silently, without a message",
    "(tells?|told) of": "reports",
    "made afresh": "rebuilt",
}

# Identifiers that have been replaced, in the spelling of the code: matched as they stand.
_IDENTIFIERS = {
    r"\.spare\(|\bSpared\b": "drop_erased, Filtered",
    r"\bKeptRecords\b|\bkept\.py\b": "DeadLetterSource, requeue.py",
    r"\bKeptOpen\b": "CachedLake",
    r"\bletters\.py\b|\bkeep_here\b": "dlq.py, no_dlq",
    r"\bhand_over_batches\b|\b_Undivided\b": "install_raw_batches, RawBatch",
    r"\b_undivided\b": "_transaction",
    r"\b_?MOST_[A-Z]+\b": "MAX_..., ..._THRESHOLD",
    r"\b_?insist\(|\bimpatient\b": "deliver_with_retry, with_short_timeouts",
    r"\bread_held\b|\bHeld\b\(": "read_state, PublicationState",
    r"\.behind\(|\bdef behind\b": "remaining_records",
    r"\.following\(|\bdef following\b": "next_checkpoint",
    r"\bbring_up\b": "sync_to_snapshot",
    r"\blet_read\b": "register_s3",
    r"\b_calm\b|\b_STEERING\b": "_escape, _CONTROL_CHARS",
}


def _whole_words(phrases: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z])(?:{phrases})(?![a-z])".replace(" ", r"[\s_#]+"), re.IGNORECASE)


_RULES = [(_whole_words(phrase), better) for phrase, better in _PHRASES.items()]
_RULES += [(re.compile(pattern), better) for pattern, better in _IDENTIFIERS.items()]
_ANY = (_whole_words("|".join(_PHRASES)), re.compile("|".join(_IDENTIFIERS)))
"""What finds whether a text has a hit at all, in half the time."""


def hits(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line (from 1), the words found and the better ones, rule by rule."""
    if not any(pattern.search(text) for pattern in _ANY):
        return
    for pattern, better in _RULES:
        for match in pattern.finditer(text):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), better


def files() -> list[Path]:
    """Return the files that are checked, relative to the repository: tracked or new, in the order of their names."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()
    paths = [Path(name) for name in sorted(listed) if not name.startswith(_EXCLUDED)]
    return [path for path in paths if path.suffix in _SUFFIXES and (REPOSITORY / path).is_file()]


def report() -> list[str]:
    """Return a line for each hit in the tree."""
    return [
        f"{path}:{line}: {found!r}: better {better}"
        for path in files()
        for line, found, better in sorted(hits((REPOSITORY / path).read_text(encoding="utf-8")))
    ]


if __name__ == "__main__":
    lines = report()
    print("\n".join(lines) or "no word of the earlier vocabulary")  # noqa: T201
    sys.exit(1 if lines else 0)
