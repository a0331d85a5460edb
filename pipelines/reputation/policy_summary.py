"""A policy as lines of text: everything that its file says, in the words of the file.

The tables and keys are those of the model, so that a new one is not forgotten; a key that the file leaves out is left
out, except for what every policy has: windows, the step of a decay and the measure `rating_average`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.reputation.policy import Policy, Rules
from pipelines.reputation.policy.numbers import Section

_ALONE = ("fixed", "equals", "at")
"""Keys of which a file writes only the value, in place of their table."""
_PLAIN = re.compile(r"[\w.+-]+")

Line = tuple[str, str]
"""A key, and what the policy says of it."""


def summarize(policy: Policy) -> list[Line]:
    """Return a policy as lines, those of each version indented."""
    head = [("name", policy.name), ("description", policy.description or "(no description)")]
    mode = [("mode", policy.mode)] if len(policy.versions) > 1 or "mode" in policy.model_fields_set else []
    return [*head, *mode, *(line for rules in policy.versions for line in _of_version(rules))]


def _of_version(rules: Rules) -> Iterator[Line]:
    since = f", from {rules.effective_from:%Y-%m-%d %H:%M %Z} on" if rules.effective_from else ""
    yield "version", f"{rules.version}{since}"
    always = {"windows_days": rules.windows_days, "measures": rules.all_measures}
    steps = {"decay_step_minutes": rules.decay_step_minutes} if rules.decays else {}
    given = dict(_given(rules)) | always | steps
    for key in filter(given.__contains__, Rules.model_fields):
        if key in {"version", "effective_from"}:
            continue
        if isinstance(table := given[key], Mapping):
            yield from ((f"  {key}.{name}", _text(each)) for name, each in table.items())
        else:
            yield f"  {key}", _text(table) or "none"


def _given(section: Section) -> Iterator[tuple[str, Any]]:
    """Yield the keys that a file gives, and their values, in the order of the model."""
    for name, field in type(section).model_fields.items():
        if name in section.model_fields_set and (value := getattr(section, name)) is not None:
            yield field.alias or name, value


def _text(value: Any) -> str:
    """Return a value of a policy as text; the only emission of an action as the file abbreviates it."""
    match value:
        case Section():
            return ", ".join(_entry(key, each) for key, each in _given(value))
        case Mapping():
            return ", ".join(f"{_text(key)}: {_inner(each)}" for key, each in value.items())
        case tuple():
            return ", ".join(map(_inner, value))
        case str():
            return value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)
        case _:
            return str(value)


def _entry(key: str, value: Any) -> str:
    if key == "emit" and len(value) == 1:
        return _text(value[0])
    return _inner(value) if key in _ALONE else f"{key} {_inner(value)}"


def _inner(value: Any) -> str:
    """Return a value inside another one: in parentheses if it has several parts."""
    text = _text(value)
    is_alone = isinstance(value, Section) and [key for key, _ in _given(value)] in [[key] for key in _ALONE]
    is_table = isinstance(value, Section | Mapping) and not is_alone
    is_several = isinstance(value, tuple) and len(value) != 1
    return f"({text})" if is_table or is_several else text
