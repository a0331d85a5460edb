"""The commands that read files of events: emit, backfill."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.boundary.text import amount
from pipelines.cli.file_options import takes_mapping
from pipelines.cli.options import bare_settings, topic_settings, utf8
from pipelines.cli.output import (
    ProgressBar,
    print_error,
    print_line,
    print_note,
    print_table,
    print_warning,
    progress,
)
from pipelines.cli.pipeline import show_drained
from pipelines.cli.previews import show_preview
from pipelines.errors import KarmalakeError, RejectedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa

    from pipelines.backfill import FileSummary
    from pipelines.ingest.file import FileSource
    from pipelines.lake.commit import CommitRecord
    from pipelines.lake.run_lake import OpenLake
    from pipelines.mapping.source_files import SourceFile
    from pipelines.settings import Settings
    from pipelines.sources.files import ColumnMapping


_SAME_ID = (
    "if they are other events, as the rows of another table that counts from 1, load the file again with an action "
    "type or an --identity column that tells the two apart"
)
_MANY_FILES = 100
"""If a load leaves more files than this that belong together, they are merged at its end."""
_Files = Annotated[
    list[str] | None,
    typer.Argument(
        help="Files, folders, patterns, Delta tables, s3:// addresses, or - for standard input; with --source those of "
        "the source by default."
    ),
]
_Source = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The source file, sources/NAME.toml, that says what the rows are."),
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would come of the rows; change nothing.")]


@takes_mapping
def emit(
    file: Annotated[str, typer.Argument(help="A file of any format, an s3:// address, or - for standard input.")],
    mapping: "ColumnMapping",
    dry_run: _DryRun = False,  # noqa: FBT002 - an option of the command line
) -> None:
    """Publish the rows of a file as events. Sending a file again is harmless: its event_ids are the same.

    Example: `karmalake emit ratings.csv --user-id to --time time --time-unit s --action-type UserRated
    --metadata rating=feature --metadata rater_id=from`
    """
    if dry_run:
        preview_files(bare_settings(), [file], mapping)
        return
    from pipelines.bus.topics import ensure_topic  # noqa: PLC0415
    from pipelines.emit.producer import produce  # noqa: PLC0415
    from pipelines.inputs import local_file  # noqa: PLC0415
    from pipelines.sources.files import read_events  # noqa: PLC0415
    from pipelines.sources.rows import describe  # noqa: PLC0415

    kafka = topic_settings("emit").kafka
    ensure_topic(kafka)
    with local_file(file) as found, progress(f"emitting {Path(file).name}") as advance:
        if form := describe(found.path, mapping.reading, mapping.required_columns(), found.name):
            print_note(f"{file}: {form}")
        sent = produce(kafka, _counted(read_events(found.path, mapping), advance))
    print_line(f"{amount(sent.records, 'event')} sent to {kafka.topic} in {sent.seconds:.1f} s")


@takes_mapping
def backfill(
    files: _Files = None,
    mapping: "ColumnMapping | None" = None,
    source: _Source = None,
    name: Annotated[
        str, typer.Option("--name", help="What `karmalake loads list` calls standard input.", rich_help_panel="Files")
    ] = "",
    dry_run: _DryRun = False,  # noqa: FBT002 - an option of the command line
) -> None:
    """Load files of history into the lake without the bus: same events, dedup and dead letters as with `emit`.

    Safe to kill: the same command continues from the last commit, and skips files that are already loaded. A refused
    file does not stop the others. Exits 0 if every file is loaded and has at least one event.
    The next `karmalake refresh` updates the scores.
    """
    from pipelines.lake.run_lake import RunLake  # noqa: PLC0415

    settings = bare_settings()
    rows, addresses = _inputs(settings, files, mapping, source)
    name = utf8(name)
    if dry_run:
        preview_files(settings, addresses, rows, name)
        return
    lake = RunLake(settings.lake_root)
    records: list[CommitRecord] = []
    sources: dict[str, FileSource] = {}
    refused: dict[str, KarmalakeError] = {}
    for address in addresses:
        title = _title(address, name)
        try:
            _load(settings, lake.open, (address, name), rows, records, sources)
        except (UsageError, RejectedError) as error:
            refused[title] = error
    if records or not refused:
        show_drained(records)
    accounts = _accounts(settings, sources) if records or len(refused) < len(addresses) else {}
    _show_outcomes(accounts, sources)
    refused = {**_without_events(accounts, refused), **refused}
    for title, error in refused.items():
        print_error(f"{title}: {_problem(error, title)}{_committed(accounts.get(title))}", error.code)
    _finish(settings, records, list(sources.values()))
    if refused:
        print_line(f"{len(addresses) - len(refused)} of {len(addresses)} files loaded")
        raise typer.Exit(next(iter(refused.values())).exit_code)


def _inputs(
    settings: "Settings", files: list[str] | None, mapping: "ColumnMapping | None", source: str | None
) -> "tuple[ColumnMapping | SourceFile, list[str]]":
    """Return what the rows are, and the addresses of the files."""
    from pipelines.backfill import find_file_source  # noqa: PLC0415
    from pipelines.inputs import find_files  # noqa: PLC0415

    found = find_file_source(settings, source) if source else None
    rows = found or mapping
    if rows is None or not (files or found):
        raise UsageError("give the files to load, or --source NAME, a source that names them")
    return rows, find_files(files or (found.addresses() if found else []))


def _title(address: str, name: str) -> str:
    """Return what messages call an input: its address, or the name that standard input is given."""
    from pipelines.inputs import STANDARD_INPUT  # noqa: PLC0415

    return name if name and address == STANDARD_INPUT else address


def _load(
    settings: "Settings",
    opening: "OpenLake",
    named: tuple[str, str],
    rows: "ColumnMapping | SourceFile",
    records: "list[CommitRecord]",
    sources: "dict[str, FileSource]",
) -> None:
    """Load one file, given with a name or none, and say what was found about its form.

    `sources` has it by its title from the first row on, also if it is then refused.
    """
    from pipelines.backfill import load, open_input, other_loads  # noqa: PLC0415
    from pipelines.inputs import local_file  # noqa: PLC0415

    title = _title(*named)
    with local_file(*named) as file, progress(f"loading {Path(title).name}") as advance:
        source = open_input(file, rows, settings)
        if form := source.describe():
            print_note(f"{title}: {form}")
        if others := other_loads(settings, source):
            print_warning(f"{title}: {_loaded_otherwise(others, source)}")

        def report(record: "CommitRecord") -> None:
            records.append(record)
            advance(record.total("read"))

        sources[title] = source
        load(settings, source, report, opening)


def _loaded_otherwise(loads: list[str], source: "FileSource") -> str:
    withdrawal = f"`karmalake loads withdraw {' '.join(loads)}`"
    differs = f"; `karmalake sources diff {source.source.name}` shows what differs" if source.source else ""
    return (
        f"it was loaded before by other columns or another text of its source ({', '.join(loads)}), so this is another "
        f"load: what the lake has counts once, and rows that say something else now count again. {withdrawal} takes "
        f"the earlier load back{differs}"
    )


def _accounts(settings: "Settings", sources: "dict[str, FileSource]") -> "dict[str, FileSummary]":
    from pipelines.backfill import summarize_commits  # noqa: PLC0415

    return dict(zip(sources, summarize_commits(settings, list(sources.values())), strict=True))


def _finish(settings: "Settings", records: "list[CommitRecord]", sources: "list[FileSource]") -> None:
    """Close the dead letters whose rows are accepted now, and merge the files of rows in no order of time."""
    from pipelines.lake.tables import open_lake  # noqa: PLC0415
    from pipelines.lake.upkeep import compact, count_candidates  # noqa: PLC0415
    from pipelines.operate.dead_letters import close_accepted  # noqa: PLC0415

    if not records:
        return
    with progress("looking for dead letters that are accepted now"):
        closed = close_accepted(settings, [(source.topic_id, source.topic) for source in sources])
    if closed:
        print_line(f"{amount(closed, 'dead letter')} of earlier loads closed: accepted now")
    lake, min_files = open_lake(settings.lake_root), settings.lake.compact_after_files
    if (files := count_candidates(lake, min_files)) > _MANY_FILES:
        print_note(f"{files:,} files of the lake are small or hold the same days: merging them")
        with progress("merging files"):
            compact(lake, min_files)


def _show_outcomes(accounts: "dict[str, FileSummary]", sources: "dict[str, FileSource]") -> None:
    """Print the outcome of each file over all attempts, and the next step for rows that were not accepted."""
    selects = any(account.filtered or account.made != account.converted for account in accounts.values())
    of_select = ("filtered", "made") if selects else ()
    names = ("rows", *of_select, "accepted", "duplicates", "conflicts", "dead_letters", "erased")
    if len(accounts) > 1:
        columns = ["file", *(name.replace("_", " ") for name in names)]
        print_table(
            columns, [(file, *(getattr(account, name) for name in names)) for file, account in accounts.items()]
        )
    for file, account in accounts.items() if len(accounts) == 1 else ():
        filtered = f", {account.filtered:,} filtered by the source" if account.filtered else ""
        print_line(f"{file} over all attempts: {amount(account.rows, 'row')}, {account.accepted:,} accepted{filtered}")
    for file, account in accounts.items():
        for step in next_steps(account, sources[file]):
            print_warning(f"{file}: {step}")


def _without_events(
    accounts: "dict[str, FileSummary]", refused: dict[str, KarmalakeError]
) -> dict[str, KarmalakeError]:
    """Return the error of each file that was read to its end and gave the lake nothing but complaints."""
    errors: dict[str, KarmalakeError] = {}
    for file, account in accounts.items():
        if file in refused:
            continue
        if not account.rows:
            errors[file] = RejectedError("it has no rows, so nothing was loaded: check that the export is complete")
        elif account.rows == account.filtered:
            errors[file] = RejectedError(
                f"none of its {amount(account.rows, 'row')} is an event: its source filters them all"
            )
        elif account.rows == account.dead_letters + account.filtered:
            errors[file] = RejectedError(
                f"none of its {amount(account.rows, 'row')} is a valid event: check the "
                f"options.{_example(account)} `karmalake "
                "dead-letters list` has the reasons, `karmalake dead-letters discard` discards the rows"
            )
        elif account.conflicts and not account.accepted:
            errors[file] = RejectedError(
                f"none of its {amount(account.rows, 'row')} was added, and {account.conflicts:,} are in the lake "
                f"with other "
                f"content, which counts: {_SAME_ID}. If it was loaded before under other options (metadata, times), "
                "load it with these, or take that load back first: `karmalake loads list` shows it, `karmalake loads "
                "withdraw` removes its events"
            )
    return errors


def _problem(error: KarmalakeError, title: str) -> str:
    """Return the message of an error, without the name of the file."""
    path = str(Path(title).resolve())
    return str(error).removeprefix(f"{path}: ").removeprefix(f"{title}: ").replace(path, title)


def _committed(account: "FileSummary | None") -> str:
    """Return what the lake has of a refused file."""
    if account is None or not account.made:
        return ""
    if account.conflicts and not account.accepted:
        return ""
    rows = amount(account.rows, "row before it is committed, and stays", "rows before it are committed, and stay")
    return f" ({rows}: load the corrected file, events count once)"


def next_steps(account: "FileSummary", source: "FileSource") -> "Iterator[str]":
    """Yield the next step for the rows of a file that were not accepted, by outcome."""
    from pipelines.file_steps import equal_rows_step, repeated_rows, separate_events  # noqa: PLC0415

    if step := equal_rows_step(account, source):
        yield step
    if others := account.duplicates - repeated_rows(account, source):
        why = "the lake already holds their event_id with the same content"
        if source.equal_rows() is None and source.mapping.makes_ids:
            why = (
                "they equal an earlier row of the file, or one loaded before. If equal rows are separate events, "
                f"{separate_events(source)}"
            )
        yield f"{amount(others, 'row is a duplicate', 'rows are duplicates')}: {why}"
    if account.conflicts:
        yield (
            f"{amount(account.conflicts, 'row is a conflict', 'rows are conflicts')}: the lake holds their "
            f"event_id with other content, and the "
            "first one counts; after karmalake refresh, the view conflicts shows both: karmalake sql; "
            f"{_SAME_ID}. Only if the first one was loaded wrongly, "
            "karmalake loads withdraw takes its load back: --dry-run says what follows"
        )
    if account.dead_letters:
        reasons = ", ".join(f"{reason}: {rows:,}" for reason, rows in account.reasons.items())
        yield (
            f"{amount(account.dead_letters, 'row is a dead letter', 'rows are dead letters')} "
            f"({reasons or 'discarded or requeued since'}): "
            "karmalake dead-letters list shows them; fix the file or the options and load it again: each event counts "
            f"once.{_example(account)}"
        )
    if account.erased:
        yield f"{amount(account.erased, 'row')} of erased users dropped"


def _example(account: "FileSummary") -> str:
    return f" The first: {account.example}" if account.example else ""


def preview_files(
    settings: "Settings", addresses: list[str], rows: "ColumnMapping | SourceFile", name: str = ""
) -> int:
    """Print what would come of the rows of files; return how many would be dead letters.

    A refused file does not stop the others, as when they are loaded; the command then ends with the code of the first.
    """
    from pipelines.inputs import local_file  # noqa: PLC0415
    from pipelines.preview import preview  # noqa: PLC0415

    dead_letters = 0
    refused: dict[str, KarmalakeError] = {}
    for address in addresses:
        title = _title(address, name)
        try:
            with local_file(address, name) as file, progress(f"reading {Path(title).name}"):
                found = preview(settings, file, rows)
        except (UsageError, RejectedError) as error:
            refused[title] = error
        else:
            show_preview(title, found)
            dead_letters += dict(found.fates)["dead letters"]
    for title, error in refused.items():
        print_error(f"{title}: {_problem(error, title)}", error.code)
    print_line("nothing was changed")
    if refused:
        raise typer.Exit(next(iter(refused.values())).exit_code)
    return dead_letters


def _counted(tables: "Iterable[pa.Table]", advance: ProgressBar) -> "Iterator[pa.Table]":
    for rows in tables:
        yield rows
        advance(rows.num_rows)
