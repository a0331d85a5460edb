"""Mistakes in what people write for a pydantic model: a sentence of our own for each, with place, key and remedy.

The one door of policies, their cases, rules, sources and settings: pydantic's own sentences do not reach a reader.
`toml.py` reads the files.
"""

import re
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipelines.boundary.toml import (
    abbreviate,
    did_you_mean,
    dotted_keys,
    format_problems,
    in_quotes,
    key_lines,
    line_of,
)

Place = tuple[str, ...]
Lines = Mapping[Place, int]
NAME, ELEMENT = "NAME", "*"
"""In a place: any name that the file chooses, and any element of an array."""
_STEPS: dict[Any, Place] = {
    dict: (NAME,),
    tuple: (ELEMENT,),
    list: (ELEMENT,),
    Union: (),
    types.UnionType: (),
    Annotated: (),
}
"""What a type of several values adds to the place of a table."""
_ALMOST = 0.8
"""The likeness of a slip of the pen, which outweighs that another table has exactly this key."""

_WHOLE, _NUMBER, _TEXT = "has to be a whole number", "has to be a number", "has to be a text in quotes"
_TABLE, _ARRAY, _TRUTH = "has to be a table", "has to be an array in brackets", "has to be true or false"
_TIME = "has to be a time with its zone, such as 2026-01-31T12:00:00Z"
SENTENCES = {
    "missing": "is missing: add it",
    "model_type": _TABLE,
    "model_attributes_type": _TABLE,
    "dict_type": _TABLE,
    "tuple_type": _ARRAY,
    "list_type": _ARRAY,
    "string_type": _TEXT,
    "path_type": _TEXT,
    "bool_type": _TRUTH,
    "bool_parsing": _TRUTH,
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "decimal_type": _NUMBER,
    "decimal_parsing": _NUMBER,
    "finite_number": "has to be a finite number",
    "decimal_max_places": "has more than {decimal_places} digits after the point: round it",
    "greater_than": "has to be above {gt}",
    "greater_than_equal": "has to be at least {ge}",
    "less_than": "has to be below {lt}",
    "less_than_equal": "has to be at most {le}",
    "literal_error": "has to be {expected}",
    "string_too_long": "has more than {max_length} characters: shorten it",
    "too_long": "has more than {max_length} entries: remove some",
    "timezone_aware": "has no time zone: end it with Z for UTC",
    "datetime_type": _TIME,
    "datetime_parsing": _TIME,
    "datetime_from_date_parsing": _TIME,
}
"""What is wrong, by pydantic's type of error, whose context fills the braces."""
_QUOTE = "'"
_EMPTY = "is empty: give a value, or remove it"


class MistakeError(ValueError):
    """A mistake that a model's own check finds; `path`, from where the check is, is of the key to fix."""

    def __init__(self, path: Place, message: str) -> None:
        super().__init__(message)
        self.path = path


def spelled(pattern: str, words: str) -> AfterValidator:
    """Return the check of a text by a regular expression; `words` say what is allowed, in an error."""
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(words)
        return text

    return AfterValidator(check)


def _same(place: Place) -> Place:
    return place


def _path_as_written(path: Place, lines: Lines) -> Place:  # noqa: ARG001 - as FileFormat.shorten
    return path


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A kind of TOML file: its model, and what a file may abbreviate of the model's tables."""

    model: type[BaseModel]
    title: str
    """What messages about the whole file name."""
    write: Callable[[Place], Place] = _same
    """Returns the place of a table of the model as a file writes it."""
    shorten: Callable[[Place, Lines], Place] = _path_as_written
    """Returns the path of a value in the model as a file with these lines writes it."""
    clean: Callable[[Place], Place] = _same
    """Returns the path of a value in the model, without what pydantic adds to it."""
    hidden: frozenset[str] = frozenset()
    """Keys whose values messages do not show."""
    unknown: str = "is not a key here"

    def explain(self, error: ValidationError, text: str, place: str) -> str:
        """Return the sentences about the mistakes in a file's text, one per line; `place` names the file."""
        found = [problem for problem in error.errors(include_url=False) if not _is_of_elements(problem)]
        dotted = dotted_keys(text)
        return self.report((self._explained(problem, dotted) for problem in found), len(found), text, place)

    def report(self, problems: Iterable[tuple[Place, str]], count: int, text: str, place: str) -> str:
        """Return sentences about what is wrong at paths of the model, one per line, each with the line in the text.

        There are `count` problems. Only those that are shown are read: an unknown key takes 2 ms to explain.
        """
        lines = key_lines(text)
        return format_problems((self._sentence(path, problem, place, lines) for path, problem in problems), count)

    def _explained(self, problem: ErrorDetails, dotted: Sequence[Place]) -> tuple[Place, str]:
        path = self.clean(path_of(problem))
        return path, self._quoting(problem, path, dotted) or self.remedy(problem, path)

    def _quoting(self, problem: ErrorDetails, path: Place, dotted: Sequence[Place]) -> str:
        """Return how to write a name with points, of which the file has the parts as keys; empty if it is none."""
        is_unknown, given = problem["type"] == "extra_forbidden", problem.get("input")
        named, rest = (path[:-1], path[-1:]) if is_unknown else (path, ())
        if not _is_chosen(self.model, named) or not (is_unknown or isinstance(given, dict)):
            return ""
        what = self.unknown if is_unknown else "is a table here, since a point divides a key"
        place = self.write(_place(self.model, named))
        here = self.tables()[place] if place else {}
        for parts in dotted:
            start = next((n for n in range(len(parts) - 1) if _ends_with(named, parts[: n + 1])), None)
            if (
                start is not None
                and parts[start + 1] not in here
                and (not rest or rest == parts[start + 1 : start + 2])
            ):
                return f"{what}: {in_quotes(parts[start:])}"
        if is_unknown and (further := _path_to_keys(given, here)) is not None:
            return f"{what}: {in_quotes(path[len(named) - 1 :] + further, _header((*place[:-1], '{}')))}"
        return ""

    def _sentence(self, path: Place, problem: str, place: str, lines: Lines) -> str:
        written = self.shorten(path, lines)
        line = line_of(written, lines) or 1
        return f"{place}:{line}: {'.'.join(map(abbreviate, written)) or self.title}: {problem}"

    def remedy(self, problem: ErrorDetails, path: Place) -> str:
        """Return what is wrong with the value at a path of the model, and what to write."""
        if problem["type"] == "extra_forbidden":
            return self.misplaced(path, problem.get("input"))
        return what_is_wrong(problem, shows=path[-1:] not in {(name,) for name in self.hidden})

    def misplaced(self, path: Sequence[str], value: object) -> str:
        """Return what is wrong with an unknown key: which key of its table was meant, or which table has the key."""
        key, tables, is_table = path[-1], self.tables(), _is_table(value)
        place = _place(self.model, path[:-1])
        here = tables.get(self.write(place), {})
        alike = sorted(name for name, holds_table in here.items() if holds_table == is_table)
        if meant := did_you_mean(_alias(self.model, place, key) or key, alike, _ALMOST):
            return f"{self.unknown}{meant}"
        if places := [place for place, keys in tables.items() if key in keys and (keys[key] or not is_table)]:
            return f"{self.unknown}: it belongs to {_joined([_header(place) for place in places])}"
        return f"{self.unknown}{did_you_mean(key, alike if is_table else sorted(here)) or ': remove it'}"

    def tables(self) -> dict[Place, dict[str, bool]]:
        """Return by the place of each table, as a file writes it, its keys and whether their values may be tables."""
        found: dict[Place, dict[str, bool]] = {}
        for place, table in tables_of(self.model):
            keys = found.setdefault(self.write(place), {})
            keys |= {field.alias or name: _holds_table(field.annotation) for name, field in table.model_fields.items()}
        return found


def path_of(problem: ErrorDetails) -> Place:
    """Return the path in the model of what a problem is about."""
    path = tuple(str(part) for part in problem["loc"] if part != "[key]")
    context = problem.get("ctx", {})
    if problem["type"].startswith("union_tag"):
        return (*path, context["discriminator"].strip(_QUOTE))
    error = context.get("error")
    return path + error.path if isinstance(error, MistakeError) else path


def what_is_wrong(problem: ErrorDetails, *, shows: bool) -> str:
    """Return what is wrong with a value in our own words; `shows`: and the value, unless it is long."""
    context, given = problem.get("ctx", {}), problem.get("input")
    match problem["type"]:
        case "value_error":
            message = str(context["error"])
        case "too_short" | "string_too_short" if context["min_length"] == 1:
            return _EMPTY
        case "too_short" | "string_too_short":
            message = f"is too short: at least {context['min_length']} characters"
        case "union_tag_not_found":
            return SENTENCES["missing"]
        case "union_tag_invalid":
            tags = context["expected_tags"].replace(", ", " or ")
            return f"has to be {tags}, not {abbreviate(context['tag'])}"
        case kind:
            context = {name: _plain(value) for name, value in context.items()}
            message = SENTENCES.get(kind, "is not understood: see its documentation").format(**context)
    is_shown = shows and "input" in problem and problem["type"] != "missing"
    if not is_shown or isinstance(given, dict | list | tuple | BaseModel):
        return message
    return f"{message}, not {abbreviate(str(given).lower() if isinstance(given, bool) else given)}"


def _is_of_elements(problem: ErrorDetails) -> bool:
    """Return whether an array is too short only since its elements have mistakes, which are problems of their own."""
    return problem["type"] == "too_short" and isinstance(problem["input"], list) and len(problem["input"]) > 0


def _plain(value: object) -> object:
    """Return a bound as a file writes it: 0.0 as 0."""
    return int(value) if isinstance(value, float | Decimal) and value == int(value) else value


def tables_of(table: type[BaseModel], place: Place = ()) -> Iterator[tuple[Place, type[BaseModel]]]:
    """Yield the tables of a model by place, the whole file first."""
    yield place, table
    for name, field in table.model_fields.items():
        for further, inner in _inner(field.annotation):
            yield from tables_of(inner, (*place, field.alias or name, *further))


def _inner(annotation: Any) -> Iterator[tuple[Place, type[BaseModel]]]:
    """Yield the tables in a type: an optional one, those of a dictionary, or the elements of an array."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield (), annotation
    step = _STEPS.get(get_origin(annotation))
    if step is not None:
        found = (inner for argument in get_args(annotation) for inner in _inner(argument))
        yield from ((step + place, table) for place, table in found)


def _holds_table(annotation: Any) -> bool:
    """Return whether a value may be a table, or an array of tables."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    if get_origin(annotation) is Literal:
        return False
    return get_origin(annotation) is dict or any(map(_holds_table, get_args(annotation)))


def _is_table(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, dict) for each in value))


def _place(model: type[BaseModel], path: Sequence[str]) -> Place:
    """Return the place of the table at a path."""
    places = (place for place, _ in tables_of(model))
    return next((place for place in places if len(place) == len(path) and all(map(_fits, place, path))), ())


def _is_chosen(annotation: Any, path: Place) -> bool:
    """Return whether the file chooses the last part of a path: it is a key of a dictionary of the model."""
    if not path:
        return False
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.items()
        return any(_is_chosen(field.annotation, path[1:]) for name, field in fields if path[0] in (name, field.alias))
    step, arguments = _STEPS.get(get_origin(annotation)), get_args(annotation)
    if step == (NAME,):
        return len(path) == 1 or _is_chosen(arguments[1], path[1:])
    return step is not None and any(_is_chosen(argument, path[len(step) :]) for argument in arguments)


def _path_to_keys(given: object, keys: Collection[str]) -> Place | None:
    """Return the path within a table to the one that has only some of the keys; None if there is none."""
    path: Place = ()
    while isinstance(given, dict) and given:
        table = cast("dict[str, Any]", given)
        if table.keys() <= set(keys):
            return path
        if len(table) > 1:
            return None
        ((name, given),) = table.items()
        path += (name,)
    return None


def _ends_with(path: Place, parts: Place) -> bool:
    return path[-len(parts) :] == parts


def _alias(model: type[BaseModel], place: Place, key: str) -> str | None:
    """Return how a file writes a key of the table at a place that only our code names so."""
    fields = (table.model_fields.get(key) for of_table, table in tables_of(model) if of_table == place)
    return next((field.alias for field in fields if field is not None and field.alias), None)


def _fits(part: str, given: str) -> bool:
    return part in (NAME, given) or (part == ELEMENT and given.isdecimal())


def _header(place: Place) -> str:
    """Return the header of a table."""
    name = ".".join(part for part in place if part != ELEMENT)
    table = f"[[{name}]]" if place[-1:] == (ELEMENT,) else f"[{name}]"
    return table if name else "the top level"


def _joined(places: list[str]) -> str:
    names = list(dict.fromkeys(places))
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
