"""Reading a rule file, and reporting each error with file, line and remedy."""

from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipelines.boundary.toml import (
    abbreviate,
    did_you_mean,
    format_problems,
    key_lines,
    line_of,
    parse_toml,
    read_toml,
)
from pipelines.errors import ConfigurationError
from pipelines.notify.conditions import Condition
from pipelines.notify.rules import Quiet, RedisStream, Rule, RuleFile, Webhook

_TABLES: tuple[type[BaseModel], ...] = (RuleFile, Rule, Condition, Webhook, RedisStream, Quiet)
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
        lines = key_lines(text)
        problems = error.errors(include_url=False)
        sentences = (_explain(problem, place, lines) for problem in problems)
        raise ConfigurationError(format_problems(sentences, len(problems))) from None


def _explain(problem: ErrorDetails, place: str, lines: dict[tuple[str, ...], int]) -> str:
    path = tuple(str(part) for part in problem["loc"])
    if path[:1] == ("destinations",) and path[2:3] and path[2] in _KINDS:
        path = path[:2] + path[3:]  # pydantic inserts the kind that it validated by
    return f"{place}:{line_of(path, lines) or 1}: {'.'.join(path) or 'rules'}: {_remedy(problem)}"


def _remedy(problem: ErrorDetails) -> str:
    if problem["type"] == "extra_forbidden":
        known = sorted({name for table in _TABLES for name in table.model_fields})
        return f"is not a key here{did_you_mean(str(problem['loc'][-1]), known) or ': remove it'}"
    if problem["type"] == "missing":
        return "is missing: add it"
    if problem["type"].startswith("union_tag"):
        return f'needs a kind: write kind = "{_KINDS[0]}" or kind = "{_KINDS[1]}"'
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    is_hidden = isinstance(given, dict | list | tuple | BaseModel) or problem["loc"][-1:] == ("url",)
    return message if is_hidden else f"{message}, not {abbreviate(given)}"
