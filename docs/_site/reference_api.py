"""docs/api.md: the Python door, from its docstrings and signatures."""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from itertools import pairwise
from textwrap import dedent
from typing import Any

from pydantic import BaseModel

import pipelines
from pipelines import errors

_HEAD = """# Python API

What a notebook, a job or a service calls; made from the docstrings. Everything else in `pipelines` is the inside, and
may change with any release.

```python
from pipelines import open_warehouse

with open_warehouse() as warehouse:
    print(warehouse.trends())
```

Everything raised on purpose is a `pipelines.errors.KarmalakeError`, whose message says what, where and what to do.
In a notebook, `%load_ext pipelines` brings `%%karma`: SQL as a cell, over the variable `warehouse`; `$name` is a value.
"""
BESIDE = {
    "pipelines.reputation.warehouse": ("Info", "AsOf"),
    "pipelines.reputation.explain": ("explain", "explain_change"),
    "pipelines.reputation.policy_file": ("load_policy", "parse_policy"),
    "pipelines.serving.read": ("published", "PublishedInfo", "Ranked"),
    "pipelines.emit.outbox": ("outbox_table", "add", "Event", "backlog", "Backlog"),
    "pipelines.contract.moments": ("Moment", "instant"),
}
"""What belongs to the door beside `from pipelines import ...`: what its calls return, and the service's side."""
_WIDE = 60
_ELLIPSIS = "'...'"
_MODULE = re.compile(r"\b(?:[a-z_]+\.)+(?=[A-Z])")


def api_page() -> str:
    """Return the page. Raises LookupError, naming it, for something public without a docstring."""
    parts = [_HEAD, "## `from pipelines import ...`\n"]
    for name in pipelines.__all__:
        parts += _described(name, getattr(pipelines, name))
    for module, names in BESIDE.items():
        parts.append(f"## `from {module} import ...`\n")
        for name in names:
            parts += _described(name, getattr(import_module(module), name))
    parts += ["## Errors\n", f"```text\n{dedent(errors.__doc__ or '').partition(chr(10) * 2)[2].strip()}\n```\n"]
    return "\n".join(parts)


def _described(name: str, thing: Any) -> Iterator[str]:
    if not callable(thing) or not hasattr(thing, "__module__") or getattr(thing, "__origin__", None) is not None:
        yield f"### {name}\n\n`{thing}`\n"
        return
    yield f"### {name}\n\n```text\n{_declared(name, thing)}\n```\n\n{_text(name, thing)}\n"
    if inspect.isclass(thing):
        for member, value in _members(thing):
            yield _member(f"{name}.{member}", value)


def _declared(name: str, thing: Any) -> str:
    if is_dataclass(thing):
        return "\n".join([f"class {name}:", *_fields(thing)])
    return f"class {name}" if inspect.isclass(thing) else f"{name}{_signature(thing, skipped=0)}"


def _fields(thing: Any) -> Iterator[str]:
    """Return the public fields of a dataclass, each with the sentence that stands under it."""
    said = _said_of_fields(thing)
    for field in fields(thing):
        if not field.name.startswith("_"):
            remark = f"  # {' '.join(said[field.name].split())}" if field.name in said else ""
            yield f"    {field.name}: {_short(_named(field.type))}{remark}"


def _said_of_fields(thing: Any) -> dict[str, str]:
    (owner,) = ast.parse(dedent(inspect.getsource(thing))).body
    said: dict[str, str] = {}
    for field, text in pairwise(owner.body if isinstance(owner, ast.ClassDef) else ()):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(sentence))):
                said[name] = sentence
            case _:
                pass
    return said


def _signature(thing: Any, skipped: int) -> str:
    """Return a signature without its first parameters, a line each if they are many."""
    whole = inspect.signature(thing)
    shown = [_plain(parameter) for parameter in list(whole.parameters.values())[skipped:]]
    declared = _short(str(whole.replace(parameters=shown)).replace(_ELLIPSIS, "..."))
    if len(declared) <= _WIDE:
        return declared
    lines = [f"    {_short(str(parameter)).replace(_ELLIPSIS, '...')}," for parameter in shown]
    return "\n".join(["(", *lines, declared[declared.rindex(")") :]])


def _plain(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter whose default, if it is a whole section of settings, is left out."""
    return parameter.replace(default="...") if isinstance(parameter.default, BaseModel) else parameter


def _members(owner: type) -> Iterator[tuple[str, Any]]:
    """Return the public methods and properties in the order in which they are written."""
    yield from ((name, value) for name, value in vars(owner).items() if name[0] != "_" and _is_shown(value))


def _is_shown(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, property)


def _member(name: str, value: Any) -> str:
    if isinstance(value, property):
        return f"**`{name}`** {_text(name, value)}\n"
    declared = f"{name.partition('.')[2]}{_signature(value, skipped=1)}"
    return f"#### {name}\n\n```text\n{declared}\n```\n\n{_text(name, value)}\n"


def _text(name: str, thing: Any) -> str:
    text = inspect.getdoc(thing)
    if not text or text.startswith(f"{name}("):  # a dataclass without one has its signature there
        raise LookupError(f"{name} has no docstring")
    return text


def _named(kind: Any) -> str:
    return (
        kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind)) if "[" not in str(kind) else str(kind)
    )


def _short(text: str) -> str:
    """Leave out the modules before the names of types, and the quotes of those that are defined later."""
    text = text.replace("datetime.datetime | datetime.date | str", "Moment")
    return re.sub(r"(?<=[:>] )'([^']+)'", r"\1", _MODULE.sub("", text))
