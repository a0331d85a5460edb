"""Reading a policy file; mistakes are explained with file, line and remedy.

Owns where policies are found and the messages about invalid ones; `policy/` defines what a policy means.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipelines.boundary.toml import (
    abbreviate,
    did_you_mean,
    exists,
    format_problems,
    key_lines,
    line_of,
    parse_toml,
    read_toml,
)
from pipelines.errors import PolicyError
from pipelines.reputation.policy.actions import Action, Adjustment, Emission, Points, Rating
from pipelines.reputation.policy.gates import Cap, Completion, Correction, Once, Retraction, Status
from pipelines.reputation.policy.measures import Measure
from pipelines.reputation.policy.model import Policy
from pipelines.reputation.policy.numbers import RuleError
from pipelines.reputation.policy.rules import Rules, Score

_SHIPPED = Path(__file__).parent / "policies"
SECTIONS: tuple[type[BaseModel], ...] = (
    *(Policy, Rules, Score, Action, Adjustment, Emission, Points, Rating, Measure),
    *(Status, Retraction, Correction, Completion, Once, Cap),
)
"""Every kind of table in a policy file: the source of known keys."""


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
    path = tuple(str(part) for part in problem["loc"])
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, RuleError):
        path += cause.path
    written = _written(path, lines)
    return f"{place}:{line_of(written, lines) or 1}: {'.'.join(written) or 'policy'}: {_remedy(problem)}"


def _written(path: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> tuple[str, ...]:
    """Return the path as written in the file: without the index of an array that the file abbreviates."""
    for array in ("versions", "emit"):
        for i in range(len(path) - 1):
            if path[i : i + 2] == (array, "0") and path[: i + 2] not in lines and path[: i + 1] not in lines:
                return _written(path[:i] + path[i + 2 :], lines)
    return path


def _remedy(problem: ErrorDetails) -> str:
    if problem["type"] == "extra_forbidden":
        known = _known_keys()
        key = str(problem["loc"][-1])
        if key in known:
            return f"is not a key here: it belongs to {' and '.join(known[key])}"
        return f"is not a key of a policy{did_you_mean(key, sorted(known)) or ': remove it'}"
    if problem["type"] == "missing":
        return "is missing: add it"
    message = problem["msg"].removeprefix("Value error, ")
    given: Any = problem["input"]
    return message if isinstance(given, dict | BaseModel) else f"{message}, not {abbreviate(given)}"


def _known_keys() -> dict[str, list[str]]:
    """Return every key of a policy file with the kinds of tables that have it."""
    known: dict[str, list[str]] = {}
    for section in SECTIONS:
        for name, field in section.model_fields.items():
            known.setdefault(field.alias or name, []).append(section.__name__.lower())
    return known
