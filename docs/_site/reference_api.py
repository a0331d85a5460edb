"""docs/api.md: the public Python API, from its docstrings and signatures."""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from itertools import pairwise
from textwrap import dedent
from threading import Event
from typing import Any

from pydantic import BaseModel

import karmalake
from karmalake import operations
from pipelines import errors

_HEAD = """# Python API

For authors of notebooks, jobs and services. At the end you know each public name, what it returns and what it raises.
Generated from the docstrings. Everything in `pipelines` and `assets` is internal, and may change with any release.

```python
from karmalake import open_warehouse

with open_warehouse() as warehouse:
    print(warehouse.trends())
```

Every expected error is a `karmalake.errors.KarmalakeError`, whose message says what happened, where, and what to do.
In a notebook, `%load_ext karmalake` adds `%%karma`: an SQL cell on the variable `warehouse`; `$name` is a variable,
and a data frame in a variable is a table.
"""
MODULES = {
    "karmalake": karmalake.__all__,
    "karmalake.outbox": ("outbox_table", "add", "Event", "backlog", "Backlog"),
    "karmalake.dagster": ("build_defs", "WatchedRunLauncher"),
    "karmalake.operations": operations.__all__,
    "karmalake.contract": (),
    "karmalake.charts": (),
    "karmalake.errors": (),
}
"""The documented names by module; where there are none, the docstring of the module suffices."""
_OURS = ("assets.", "karmalake.", "pipelines.")
_MAX_WIDTH = 60
_ELLIPSIS = "'...'"
_MODULE = re.compile(r"\b(?:[a-z_]+\.)+(?=[A-Z])")


def api_page() -> str:
    """Return the page. Raises LookupError for a public name without a docstring."""
    parts = [_HEAD]
    for module, names in MODULES.items():
        owner = import_module(module)
        parts += [f"## `from {module} import ...`\n", f"{inspect.getdoc(owner)}\n"]
        for name in names:
            parts += _section(name, getattr(owner, name))
    parts += [f"```text\n{dedent(errors.__doc__ or '').partition(chr(10) * 2)[2].strip()}\n```\n"]
    return "\n".join(parts)


def _section(name: str, thing: Any) -> Iterator[str]:
    if not callable(thing) or not hasattr(thing, "__module__") or getattr(thing, "__origin__", None) is not None:
        yield f"### {name}\n\n`{thing}`\n"
        return
    yield f"### {name}\n\n```text\n{_declaration(name, thing)}\n```\n\n{_text(name, thing)}\n"
    if inspect.isclass(thing):
        for member, value in _members(thing):
            yield _member(f"{name}.{member}", value)


def _declaration(name: str, thing: Any) -> str:
    if is_dataclass(thing):
        return "\n".join([f"class {name}:", *_fields(thing)])
    return f"class {name}" if inspect.isclass(thing) else f"{name}{_signature(thing, skipped=0)}"


def _fields(thing: Any) -> Iterator[str]:
    """Yield the public fields of a dataclass, each with its description."""
    descriptions = _field_descriptions(thing)
    for field in fields(thing):
        if not field.name.startswith("_"):
            remark = f"  # {' '.join(descriptions[field.name].split())}" if field.name in descriptions else ""
            yield f"    {field.name}: {_shorten(_type_name(field.type))}{remark}"


def _field_descriptions(thing: Any) -> dict[str, str]:
    (owner,) = ast.parse(dedent(inspect.getsource(thing))).body
    descriptions: dict[str, str] = {}
    for field, text in pairwise(owner.body if isinstance(owner, ast.ClassDef) else ()):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(sentence))):
                descriptions[name] = sentence
            case _:
                pass
    return descriptions


def _signature(thing: Any, skipped: int) -> str:
    """Return a signature without its first parameters; one line per parameter if it is long."""
    signature = inspect.signature(thing)
    shown = [_abbreviated(parameter) for parameter in list(signature.parameters.values())[skipped:]]
    declared = _shorten(str(signature.replace(parameters=shown)).replace(_ELLIPSIS, "..."))
    if len(declared) <= _MAX_WIDTH:
        return declared
    lines = [f"    {_shorten(str(parameter)).replace(_ELLIPSIS, '...')}," for parameter in shown]
    return "\n".join(["(", *lines, declared[declared.rindex(")") :]])


def _abbreviated(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter with a default that is a section of settings, a function or an event, abbreviated."""
    long = isinstance(parameter.default, BaseModel | Event) or inspect.isfunction(parameter.default)
    return parameter.replace(default="...") if long else parameter


def _members(owner: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties in definition order, after those of our classes that it extends."""
    classes = [each for each in reversed(owner.__mro__) if each.__module__.startswith(_OURS)]
    members = {name: value for each in classes for name, value in vars(each).items()}
    yield from ((name, value) for name, value in members.items() if name[0] != "_" and _is_shown(value))


def _is_shown(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, property)


def _member(name: str, value: Any) -> str:
    if isinstance(value, property):
        return f"**`{name}`** {_text(name, value)}\n"
    declared = f"{name.partition('.')[2]}{_signature(value, skipped=1)}"
    return f"#### {name}\n\n```text\n{declared}\n```\n\n{_text(name, value)}\n"


def _text(name: str, thing: Any) -> str:
    text = inspect.getdoc(thing)
    if not text or text.startswith(f"{name}("):  # the generated docstring of a dataclass is its signature
        raise LookupError(f"{name} has no docstring")
    return text


def _type_name(kind: Any) -> str:
    return (
        kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind)) if "[" not in str(kind) else str(kind)
    )


def _shorten(text: str) -> str:
    """Remove the modules before type names, and the quotes of forward references."""
    text = text.replace("datetime.datetime | datetime.date | str", "TimeLike")
    return re.sub(r"(?<=[:>] )'([^']+)'", r"\1", _MODULE.sub("", text))
