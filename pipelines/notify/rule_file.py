"""Reading a rule file, and reporting each error with file, line and remedy."""

from pathlib import Path

from pydantic import ValidationError

from pipelines.boundary.mistakes import FileFormat, Place
from pipelines.boundary.toml import parse_toml, read_toml
from pipelines.errors import ConfigurationError
from pipelines.notify.rules import RuleFile

_KINDS = ("webhook", "redis_stream")


def load_rules(path: Path) -> RuleFile:
    """Read a rule file.

    Raises ConfigurationError with file, line and remedy of every error.
    """
    return parse_rules(read_toml(path, ConfigurationError), str(path))


def parse_rules(text: str, place: str = "rules") -> RuleFile:
    """Parse rules from TOML text; `place` names the file in error messages. Errors as in `load_rules`."""
    values = parse_toml(text, place, ConfigurationError)
    try:
        return RuleFile.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(_FORMAT.explain(error, text, place)) from None


def _clean(path: Place) -> Place:
    """Return a path without the kind of the destination, by which pydantic validates it."""
    is_of_kind = path[:1] == ("destinations",) and path[2:3] and path[2] in _KINDS
    return path[:2] + path[3:] if is_of_kind else path


_FORMAT = FileFormat(RuleFile, "rules", clean=_clean, hidden=frozenset({"url"}))
