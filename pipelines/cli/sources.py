"""The commands of sources: list, check, diff."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.boundary.text import amount
from pipelines.cli.files import preview_files
from pipelines.cli.options import bare_settings, topic_settings
from pipelines.cli.output import print_line, print_table
from pipelines.cli.previews import show_preview
from pipelines.errors import KarmalakeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipelines.mapping.source_files import SourceFile
    from pipelines.operate.replay import Comparison
    from pipelines.operate.source_diff import SourceDiff
    from pipelines.preview import Preview

app = typer.Typer(no_args_is_help=True, help="List the sources, or show what becomes of the records of one.")
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
    from pipelines.mapping.source_files import find_source  # noqa: PLC0415

    source = find_source(_folder(folder), name)
    if source.files and records:
        raise UsageError(f"{source.path} reads files: --records is for sources of topics")
    failed = _check_files(source) if source.files else _check_topics(source, sample, records)
    if failed:
        become = "a dead letter" if failed == 1 else "dead letters"
        records_of = amount(failed, "row" if source.files else "record")
        raise KarmalakeError(f"{records_of} of {name} would be {become}: change the source, or its producer")


@app.command()
def diff(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The source: a file of the folder, without .toml.")],
    sample: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000_000, help="Read about the last N records of each topic; all by default."),
    ] = None,
) -> None:
    """Read what the lake has from a source again under its present text, and show what differs. Commits nothing.

    Files are read whole. Exits 1 if an event would be new, gone or another.
    """
    from pipelines.mapping.source_files import find_source  # noqa: PLC0415
    from pipelines.operate.source_diff import diff_source  # noqa: PLC0415

    source = find_source(_folder(None), name)
    found = diff_source(bare_settings() if source.files else topic_settings("sources diff"), source, sample)
    _show_diff(source, found)


def _show_diff(source: "SourceFile", found: "SourceDiff") -> None:
    print_line(f"{amount(found.records, 'row' if source.files else 'record')} read again")
    print_table(("fate", "before", "after"), found.fates)
    compared = found.comparison
    kinds = {"new": ("missing", ""), "gone": ("extra", ""), "other": ("different", compared.fields)}
    rows = [
        (kind, getattr(compared, name), compared.first.get(name) or "", fields)
        for kind, (name, fields) in kinds.items()
    ]
    print_table(("events", "count", "for example", "fields"), [("same", compared.same, "", ""), *rows])
    print_line("nothing was changed")
    if steps := list(_steps(source, compared)):
        raise KarmalakeError(f"the source {source.name} makes other events now: {'; '.join(steps)}")


def _steps(source: "SourceFile", compared: "Comparison") -> "Iterator[str]":
    """Yield what to do about the differences."""
    again = f"`karmalake backfill --source {source.name}`"
    if not source.files:
        again = " and ".join(f"`karmalake replay --from-beginning --topic {topic}`" for topic in source.topics)
    if compared.missing:
        yield f"{again} adds the new ones"
    if compared.extra or compared.different:
        yield (
            "what was accepted stays as it is; if it was wrong, take its loads back (`karmalake loads withdraw`), then "
            f"{again}"
        )


def _folder(given: Path | None) -> Path:
    """Return the folder of the source files: the one given, or that of the settings."""
    folder = given or bare_settings().sources.folder
    if folder is None:
        raise UsageError("there is no folder `sources`: create it with a file NAME.toml, or set sources.folder")
    return folder


def _check_files(source: "SourceFile") -> int:
    """Show what would come of each file of a source; return how many rows would be dead letters."""
    from pipelines.inputs import find_files  # noqa: PLC0415

    return preview_files(bare_settings(), find_files(source.addresses()), source)


def _check_topics(source: "SourceFile", count: int, records: Path | None) -> int:
    """Show what would come of records of each topic of a source; return how many would be dead letters."""
    failed = 0
    for title, found in _of_topics(source, count, records):
        show_preview(title, found, "record")
        failed += dict(found.fates)["dead letters"]
    print_line("nothing was changed")
    return failed


def _of_topics(source: "SourceFile", count: int, records: Path | None) -> "Iterator[tuple[str, Preview]]":
    """Yield what would come of records of each topic of a source, or of those in a file."""
    from pipelines.ingest.sample import RecordSample  # noqa: PLC0415
    from pipelines.mapping.decoder import open_mapping  # noqa: PLC0415
    from pipelines.mapping.examine import read_records, read_topic, unused_fields  # noqa: PLC0415
    from pipelines.preview import preview_records  # noqa: PLC0415

    settings = bare_settings() if records else topic_settings("sources check")
    with open_mapping(source, settings) as mapping:
        for topic in source.topics[:1] if records else source.topics:
            found = read_records(records, source, count) if records else read_topic(settings.kafka, topic, count)
            mapping(found.slice(0, 1))  # the fields of a registry's schema are known by a record
            unused = unused_fields(source, found, mapping.fields())
            yield topic, preview_records(settings, RecordSample(source, found, mapping), unused)
