"""How a file is read, as far as the caller says it; what is left open is found in the file (`dialect.py`)."""

import codecs
from dataclasses import dataclass

from pipelines.errors import UsageError

FORMATS = ("csv", "json", "parquet", "arrow", "orc", "avro", "xlsx")
_SEPARATORS = "\x01\x02\x1c\x1d\x1e\x1f"
"""Control characters that stand between values: those of Hive, and those of ASCII."""
_PUNCTUATION = _SEPARATORS + "\t !#$%&'()*+,-./:;<=>?@[]^_`{|}~"
_MAX_DELIMITER_CHARS = 4


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """The form of a file; None or empty: found in the file."""

    format: str | None = None
    """One of FORMATS; `json` is one object a line, an array, or objects over several lines."""
    delimiter: str | None = None
    """Separates the values of a row of CSV: one to four ASCII characters."""
    quote: str | None = None
    """Encloses values that contain the delimiter; an empty string if nothing does."""
    escape: str | None = None
    """Precedes a quote within a quoted value; otherwise quotes are doubled."""
    comment: str | None = None
    """Begins lines that are not rows."""
    encoding: str | None = None
    columns: tuple[str, ...] = ()
    """The names of the columns, of a CSV file whose first line is a row."""
    decimal_comma: bool | None = None
    """Whether 4,5 is the number 4.5."""
    null: tuple[str, ...] = ()
    """Texts that stand for no value, such as NULL or NA."""

    def __post_init__(self) -> None:
        """Raise UsageError for an invalid option."""
        if self.format is not None and self.format not in FORMATS:
            raise UsageError(f"{self.format!r} is not a format: give one of {', '.join(FORMATS)}")
        if self.delimiter is not None and not _is_delimiter(self.delimiter):
            raise UsageError(
                f"{self.delimiter!r} is not a delimiter: give one ASCII punctuation character, or up to four of one "
                "such as '::', or 'tab'"
            )
        for name, value in (("quote", self.quote), ("escape", self.escape), ("comment", self.comment)):
            if value and (len(value) > 1 or not value.isascii() or value.isalnum()):
                raise UsageError(f"--{name} {value!r} is not one ASCII punctuation character")
        if self.encoding is not None and not _is_encoding(self.encoding):
            raise UsageError(f"{self.encoding!r} is not an encoding: give a name such as cp1252, latin-1 or utf-16")


def _is_delimiter(text: str) -> bool:
    return 0 < len(text) <= _MAX_DELIMITER_CHARS and all(character in _PUNCTUATION for character in text)


def _is_encoding(name: str) -> bool:
    try:
        return codecs.lookup(name)._is_text_encoding  # noqa: SLF001 - as bytes.decode() tells them apart
    except LookupError:
        return False
