"""Reference pages of the documentation, generated from the code: `make docs` writes them, a test compares them."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from typer import Context
from typer.cli import get_docs_for_click
from typer.main import get_command

from docs._site.reference_api import api_page
from docs._site.reference_tables import tables_page
from pipelines.cli.app import app
from pipelines.monitoring.metrics import PROCESSES, MetricInfo
from pipelines.settings import Settings

GUARANTEES = Path("docs/guarantees.toml")
_SETTINGS_HEAD = """# Settings

For operators. At the end you know each setting, its default and where to write it.

Every setting can be an environment variable or an entry of `karmalake.toml` in the working directory (or at
`KARMALAKE_CONFIG`); the environment takes precedence. Unknown names are rejected in both. `karmalake doctor` checks an
installation, and shows no secret.

```toml
# karmalake.toml
data_dir = "/var/lib/karmalake"

[kafka]
bootstrap_servers = "broker-1:9093,broker-2:9093"
security_protocol = "SASL_SSL"
sasl_mechanism = "SCRAM-SHA-512"
sasl_username = "karmalake"   # set the password in KARMALAKE_KAFKA_SASL_PASSWORD
```
"""

_COMMANDS_HEAD = """For operators and authors of scripts. At the end you know the arguments and options of each command;
[commands by task](commands.md) is the shorter list.
"""

_METRICS_HEAD = """# Metrics

For operators who monitor karmalake with Prometheus. At the end its processes are scraped, and you know what each metric
means.

`karmalake stream`, `ingest`, `relay` and `notify` serve metrics if a port is set: `--metrics-port 9108`, or the
setting `metrics.port`. They listen on `metrics.host`, 127.0.0.1 by default, over plain HTTP. They accept requests whose
`Host` is an IP address, `localhost`, `metrics.host` or one of `metrics.allowed_hosts`, and answer any other with 421,
which protects against DNS rebinding. If Prometheus uses the name of a service, add it to `metrics.allowed_hosts`.

| path | answers |
|---|---|
| `/metrics` | the metrics below, in Prometheus' text format or OpenMetrics |
| `/healthz` | 200 while every loop runs; 503, naming the loop, if one has stalled for `metrics.stalled_after_seconds` |
| `/readyz` | 200 once every loop has succeeded; 503 before |

An unavailable service is no reason to restart a process: its loop retries, and counts as running. The metrics show what
hangs, or is down for long.

```yaml
# prometheus.yml
rule_files: [alerts.yml]
scrape_configs:
  - job_name: karmalake
    static_configs: [{targets: ["127.0.0.1:9108", "127.0.0.1:9109", "127.0.0.1:9110"]}]
```

[monitoring/alerts.yml](monitoring/alerts.yml) has alert rules, [monitoring/dashboard.json](monitoring/dashboard.json)
is a dashboard for Grafana ("Import", then choose the data source). In addition to the metrics below, processes export
the standard `process_*` metrics: memory, CPU time, open files.

## The history of lag

Every measurement of `stream` and of `karmalake lag` is retained in `lag/` in the data folder for `lag.keep_days` days:
one file per day, one line per measurement. A notebook can read it without Prometheus, with DuckDB or a warehouse opened
with `allow_files`:

```sql
SELECT measured_at, sum(lag.lag_records) AS records, max(lag.lag_seconds) AS seconds
FROM (
    SELECT measured_at, unnest(partitions) AS lag
    FROM read_ndjson('data/lag/*.jsonl', ignore_errors := true)  -- a crash may leave a truncated line
)
GROUP BY measured_at ORDER BY measured_at
```

`karmalake lag` computes rates from this history, and advises on larger batches, more processes or topic partitions, a
hot user, a slow Redis, or a checkpoint that retention is about to overtake.
"""


_GUARANTEES_HEAD = """For readers who decide whether to rely on karmalake. At the end you know each guarantee, how it is
kept, and which tests try to break it. Generated from `docs/guarantees.toml` and the docstrings of the tests, which name
the guarantees."""


def commands_page() -> str:
    """Return docs/cli.md: every command with its options, as typer describes them, with whole summaries."""
    command = get_command(app)
    _lengthen_summaries(command)
    title, _, rest = get_docs_for_click(obj=command, ctx=Context(command), name="karmalake").strip().partition("\n")
    return f"{title}\n\n{_COMMANDS_HEAD}{rest}\n"


def _lengthen_summaries(group: Any) -> None:
    """Give each command below a group its whole first paragraph as the summary, which would end after 45 letters."""
    for command in getattr(group, "commands", {}).values():
        command.short_help = " ".join((command.help or "").split("\n\n")[0].split())
        _lengthen_summaries(command)


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
        f"| `{name}` | `KARMALAKE_{(prefix + name).upper()}` | {_default(field)} | {_explanation(field)} |"
        for name, field in fields.items()
    ]
    return "\n".join(lines) + "\n"


def _explanation(field: FieldInfo) -> str:
    """Return the description of a setting on one line, as a row of a table requires."""
    return " ".join((field.description or "").split())


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _default(field: FieldInfo) -> str:
    if field.annotation == SecretStr | None:
        return "a secret"
    return "" if field.default is None else f"`{field.default}`"


def metrics_page() -> str:
    """Return docs/metrics.md: every metric of every process, with its labels, by the processes that have it."""
    processes: dict[MetricInfo, list[str]] = {}
    for name, make in PROCESSES.items():
        for entry in make().registry.entries:
            processes.setdefault(entry, []).append(name)
    groups = dict.fromkeys(map(tuple, processes.values()))
    tables = [
        _metrics_table(_processes_title(group), [entry for entry, names in processes.items() if tuple(names) == group])
        for group in groups
    ]
    return "\n".join([_METRICS_HEAD, *tables])


def _processes_title(names: tuple[str, ...]) -> str:
    return "Every process" if names == tuple(PROCESSES) else " and ".join(f"`karmalake {name}`" for name in names)


def _metrics_table(title: str, entries: list[MetricInfo]) -> str:
    lines = [f"## {title}", "", "| name | type | labels | |", "|---|---|---|---|"]
    for entry in entries:
        labels = ", ".join(f"`{label}`" for label in entry.labels)
        lines.append(f"| `{entry.name}` | {entry.kind} | {labels} | {entry.text} |")
    return "\n".join(lines) + "\n"


def guarantees_page(repository: Path) -> str:
    """Return docs/guarantees.md: every guarantee with the code that enforces it and the tests that try it."""
    guarantees = tomllib.loads((repository / GUARANTEES).read_text(encoding="utf-8"))["guarantee"]
    tests = trials(repository)
    parts = [
        "# Guarantees",
        "",
        _GUARANTEES_HEAD,
        "",
    ]
    for guarantee in guarantees:
        parts += [f"## `{guarantee['id']}` ({guarantee['kind']})", "", guarantee["claim"], ""]
        if missing := guarantee.get("missing"):
            parts += [f"**{missing}**", ""]
            continue
        files = ", ".join(f"[`{path}`](../{path})" for path in guarantee["enforced_by"])
        parts += [f"{guarantee['how']} Enforced by {files}.", "", "Tested by"]
        parts += [f"- `{test}`" for test in tests[guarantee["id"]]]
        parts += ["", *map(_broken, guarantee.get("broken", []))]
        parts += [""] if guarantee.get("broken") else []
    return "\n".join(parts)


def _broken(case: dict[str, Any]) -> str:
    """Return how a guarantee was once broken, and the tests that would detect it now."""
    return f"- Broken once: {case['what']} Now tested by {', '.join(f'`{test}`' for test in case['held_by'])}."


def trials(repository: Path) -> dict[str, list[str]]:
    """Return the tests and test modules whose docstring names a guarantee in backticks, by its id."""
    found: dict[str, list[str]] = {}
    for path in sorted((repository / "tests").rglob("test_*.py")):
        place = str(path.relative_to(repository))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module) or (isinstance(node, ast.FunctionDef) and node.name.startswith("test_")):
                name = place if isinstance(node, ast.Module) else f"{place}::{node.name}"
                for promise in re.findall(r"`([a-z-]+)`", ast.get_docstring(node) or ""):
                    found.setdefault(promise, []).append(name)
    return found


PAGES = {"api.md": api_page, "cli.md": commands_page, "metrics.md": metrics_page, "settings.md": settings_page}


if __name__ == "__main__":
    docs = Path(sys.argv[1])
    for file_name, page in PAGES.items():
        (docs / file_name).write_text(page(), encoding="utf-8")
    (docs / "guarantees.md").write_text(guarantees_page(docs.parent), encoding="utf-8")
    (docs / "tables.md").write_text(tables_page(), encoding="utf-8")
