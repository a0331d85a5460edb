"""The reference pages of the documentation, made from the code: `make docs` writes them, a test compares them."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from pipelines.settings import Settings

_SETTINGS_HEAD = """# Settings

Every setting can stand in the environment or in `karmalake.toml` in the working directory (or at `KARMALAKE_CONFIG`);
the environment wins. Unknown names are refused in both. `karmalake doctor` says what is wrong with a set-up, and shows
no secret.

```toml
# karmalake.toml
data_dir = "/var/lib/karmalake"

[kafka]
bootstrap_servers = "broker-1:9093,broker-2:9093"
security_protocol = "SASL_SSL"
sasl_mechanism = "SCRAM-SHA-512"
sasl_username = "karmalake"   # the password belongs into KARMALAKE_KAFKA_SASL_PASSWORD
```
"""


def commands_page() -> str:
    """Return docs/cli.md: every command with its options, as typer describes them."""
    from typer.cli import app as typer_cli  # noqa: PLC0415 - typer's own command line, needed here only

    result = CliRunner().invoke(typer_cli, ["pipelines.cli.app", "utils", "docs", "--name", "karmalake"])
    if result.exit_code:
        raise RuntimeError(result.output)
    return result.output


def settings_page() -> str:
    """Return docs/settings.md: every setting with its variable, default and explanation."""
    sections = [_SETTINGS_HEAD, *_tables()]
    return "\n".join(sections)


def _tables() -> Iterator[str]:
    top = {name: field for name, field in Settings.model_fields.items() if not _is_section(field)}
    yield _table("General", "", top)
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield _table(f"`[{name}]`", f"{name}_", section.model_fields, section.__doc__ or "")


def _table(title: str, prefix: str, fields: dict[str, FieldInfo], text: str = "") -> str:
    lines = [
        f"## {title}",
        "",
        *([text.strip(), ""] if text else []),
        "| name | variable | default | |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{name}` | `KARMALAKE_{(prefix + name).upper()}` | {_default(field)} | {field.description or ''} |"
        for name, field in fields.items()
    ]
    return "\n".join(lines) + "\n"


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _default(field: FieldInfo) -> str:
    if field.annotation == SecretStr | None:
        return "a secret"
    return "" if field.default is None else f"`{field.default}`"


def guarantees_page(repository: Path) -> str:
    """Return docs/guarantees.md: every promise with the code that keeps it and the tests that try to break it."""
    guarantees = tomllib.loads((repository / GUARANTEES).read_text(encoding="utf-8"))["guarantee"]
    tests = trials(repository)
    parts = ["# Guarantees", "", "Made from `docs/guarantees.toml` and from the tests, which name what they try.", ""]
    for guarantee in guarantees:
        parts += [f"## `{guarantee['id']}` ({guarantee['kind']})", "", guarantee["claim"], ""]
        if missing := guarantee.get("missing"):
            parts += [f"**{missing}**", ""]
            continue
        files = ", ".join(f"[`{path}`](../{path})" for path in guarantee["enforced_by"])
        parts += [f"{guarantee['how']} Kept by {files}.", "", "Tried by"]
        parts += [f"- `{test}`" for test in tests[guarantee["id"]]]
        parts.append("")
    return "\n".join(parts)


def trials(repository: Path) -> dict[str, list[str]]:
    """Return, by the id of a promise, the tests, or whole files of tests, whose docstring names it in backticks."""
    found: dict[str, list[str]] = {}
    for path in sorted((repository / "tests").rglob("test_*.py")):
        place = str(path.relative_to(repository))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module) or (isinstance(node, ast.FunctionDef) and node.name.startswith("test_")):
                name = place if isinstance(node, ast.Module) else f"{place}::{node.name}"
                for promise in re.findall(r"`([a-z-]+)`", ast.get_docstring(node) or ""):
                    found.setdefault(promise, []).append(name)
    return found


GUARANTEES = Path("docs/guarantees.toml")
PAGES = {"cli.md": commands_page, "settings.md": settings_page}


if __name__ == "__main__":
    docs = Path(sys.argv[1])
    for file_name, page in PAGES.items():
        (docs / file_name).write_text(page(), encoding="utf-8")
    (docs / "guarantees.md").write_text(guarantees_page(docs.parent), encoding="utf-8")
