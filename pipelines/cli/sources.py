"""The commands of sources: list, check."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import bare_settings, current_settings
from pipelines.cli.output import print_line, print_table, print_title, print_warning
from pipelines.errors import KarmalakeError, UsageError

if TYPE_CHECKING:
    from pipelines.mapping.examine import Examination
    from pipelines.mapping.source_files import SourceFile

app = typer.Typer(no_args_is_help=True, help="List the sources, or show what becomes of the records of one.")
_SHOWN_EVENTS = 5
Folder = Annotated[Path | None, typer.Option(help="The folder of the source files; sources.folder by default.")]


@app.command(name="list")
def list_sources(folder: Folder = None) -> None:
    """List the sources with their topics and digests. Exits 78 if a file is invalid."""
    from pipelines.mapping.source_files import read_sources  # noqa: PLC0415

    rows = [(s.name, ", ".join(s.topics or s.files), s.format, s.digest) for s in read_sources(_folder(folder))]
    print_table(("source", "topics or files", "format", "digest"), rows)


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The source: a file of the folder, without .toml.")],
    sample: Annotated[int, typer.Option(min=1, max=100_000, help="How many of the last records are read.")] = 1_000,
    records: Annotated[
        Path | None, typer.Option(help="Read values from a file instead: one a line, JSON, or base64 of other formats.")
    ] = None,
    folder: Folder = None,
) -> None:
    """Show what becomes of the last records of a source: events, fates, reasons, unused fields. Commits nothing.

    Exits 1 if a record would be a dead letter.
    """
    from pipelines.mapping.source_files import read_source  # noqa: PLC0415

    there = _folder(folder)
    path = there / f"{name}.toml"
    if Path(name).name != name or not path.is_file():
        raise UsageError(f"there is no source {name!r} in {there}: `karmalake sources list` shows those that are")
    source = read_source(path)
    failed = 0
    for examination in _examinations(source, sample, records):
        _show(examination)
        failed += examination.fates["dead letters"]
    if failed:
        raise KarmalakeError(f"{failed:,} records of {name} would be dead letters: change the source, or its producer")


def _folder(given: Path | None) -> Path:
    """Return the folder of the source files: the one given, or that of the settings."""
    folder = given or bare_settings().sources.folder
    if folder is None:
        raise UsageError("there is no folder `sources`: create it with a file NAME.toml, or set sources.folder")
    return folder


def _examinations(source: "SourceFile", sample: int, records: Path | None) -> "list[Examination]":
    from pipelines.mapping.decoder import open_mapping  # noqa: PLC0415
    from pipelines.mapping.examine import examine, read_records, read_topic  # noqa: PLC0415

    if records is None and not source.topics:
        raise UsageError(f"{source.path} reads files, which `karmalake backfill --dry-run` checks")
    settings = bare_settings() if records else current_settings()
    with open_mapping(source, settings) as mapping:
        if records is not None:
            return [examine(source, mapping, read_records(records, source, sample), mapping.fields())]
        tables = [read_topic(settings.kafka, topic, sample) for topic in source.topics]
        return [examine(source, mapping, table, mapping.fields()) for table in tables]


def _show(examination: "Examination") -> None:
    print_title(f"{examination.records:,} records")
    print_table(("fate", "count"), examination.fates.items())
    events = examination.decoded.events.slice(0, _SHOWN_EVENTS).to_pylist()
    names = ("event_id", "user_id", "action_type", "event_time", "metadata")
    rows = [
        [*(row[name] for name in names[:4]), json.dumps(dict(row["metadata"]), ensure_ascii=False)] for row in events
    ]
    if rows:
        print_title("first events")
        print_table(names, rows)
    if reasons := examination.reasons():
        print_title("dead letters")
        print_table(("reason", "records", "first", "detail"), reasons)
    if examination.unused:
        print_line(f"unused fields: {', '.join(examination.unused)}")
    if not examination.records:
        print_warning("there are no records to check")
