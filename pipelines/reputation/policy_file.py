"""Reading a policy file; mistakes are explained with file, line and remedy.

Owns where policies are found and the messages about invalid ones; `policy/` defines what a policy means.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipelines.boundary.toml import (
    abbreviate,
    exists,
    format_problems,
    key_lines,
    line_of,
    parse_toml,
    read_toml,
)
from pipelines.errors import PolicyError
from pipelines.reputation.policy.model import Policy
from pipelines.reputation.policy.numbers import RuleError
from pipelines.reputation.policy_keys import misplaced

_SHIPPED = Path(__file__).parent / "policies"
_KINDS = {
    "model_type": "a table",
    "dict_type": "a table",
    "tuple_type": "an array",
    "decimal_type": "a number",
    "decimal_parsing": "a number",
    "string_type": "a text",
}
"""What a value of a wrong type has to be, as TOML calls it."""
_ABBREVIATED = {("fixed",), ("equals",), ("at",)}
"""Keys of which a file writes only the value, in place of their table."""


def shipped_policies() -> list[str]:
    """Return the names of the policies shipped with karmalake."""
    return sorted(path.stem for path in _SHIPPED.glob("*.toml") if not path.stem.endswith(".test"))


def load_policy(name_or_path: str | Path) -> Policy:
    """Read a shipped policy by its name, or a policy file by its path.

    Raises PolicyError naming file, line and remedy of every mistake.
    """
    path = locate_policy(name_or_path)
    return parse_policy(read_toml(path, PolicyError), str(path))


def parse_policy(text: str, place: str = "policy") -> Policy:
    """Read a policy from TOML text; error messages name `place` instead of a file.

    Raises PolicyError naming place, line and remedy of every mistake.
    """
    values = parse_toml(text, place, PolicyError)
    try:
        return Policy.model_validate(values)
    except ValidationError as error:
        lines = key_lines(text)
        problems = error.errors(include_url=False)
        sentences = (_explain(problem, place, lines) for problem in problems)
        raise PolicyError(format_problems(sentences, len(problems))) from None


def locate_policy(name_or_path: str | Path) -> Path:
    """Return the file of a policy, which may be a shipped one. Raises PolicyError if there is none."""
    name = str(name_or_path)
    if name in shipped_policies():
        return _SHIPPED / f"{name}.toml"
    path = Path(name)
    if not exists(path):
        raise PolicyError(
            f"there is no policy {abbreviate(name)!r}: name a TOML file, or one of the shipped policies "
            f"({', '.join(shipped_policies())})"
        )
    return path


def _explain(problem: ErrorDetails, place: str, lines: dict[tuple[str, ...], int]) -> str:
    path = tuple(str(part) for part in problem["loc"] if part != "[key]")
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, RuleError):
        path += cause.path
    written = _written(path, lines)
    remedy = _remedy(problem, path, has_versions=any(line[0] == "versions" for line in lines))
    return f"{place}:{line_of(written, lines) or 1}: {'.'.join(written) or 'policy'}: {remedy}"


def _written(path: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> tuple[str, ...]:
    """Return the path as written in the file: without the index of an array, or a key, that the file abbreviates."""
    for array in ("versions", "emit"):
        for i in range(len(path) - 1):
            if path[i : i + 2] == (array, "0") and path[: i + 2] not in lines and path[: i + 1] not in lines:
                return _written(path[:i] + path[i + 2 :], lines)
    return path[:-1] if path[-1:] in _ABBREVIATED and path not in lines else path


def _remedy(problem: ErrorDetails, path: tuple[str, ...], *, has_versions: bool) -> str:
    if problem["type"] == "extra_forbidden":
        return misplaced(path, has_versions=has_versions)
    if problem["type"] == "missing":
        return "is missing: add it"
    kind = _KINDS.get(problem["type"])
    message = f"has to be {kind}" if kind else problem["msg"].removeprefix("Value error, ")
    given: Any = problem["input"]
    return message if isinstance(given, dict | BaseModel) else f"{message}, not {abbreviate(given)}"
