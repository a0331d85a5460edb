"""The commands about dead letters: list, show, requeue, export, discard."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.options import bare_settings
from pipelines.cli.output import facts, progress, say, table
from pipelines.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.operate.dead_letters import Fate, Selection

app = typer.Typer(no_args_is_help=True, help="Records that are no events: look at them, mend and requeue, or discard.")

_Reason = Annotated[str | None, typer.Option(metavar="CODE", help="Only those with this reason code.")]
_Place = Annotated[
    str | None, typer.Option(metavar="TOPIC-PARTITION@OFFSET", help="Only the one that stood at this place.")
]
_COLUMNS = ("place", "reason", "detail", "fate")
_MAX_SHOWN_BYTES, _MAX_HEADERS = 16_384, 100
"""Of a key, a value or a header, and of a record, on the terminal: a few kilobytes of a topic may be 128 MiB."""


@app.command("list")
def list_letters(
    reason: _Reason = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that were requeued or discarded.")] = False,  # noqa: FBT002 - a flag
    limit: Annotated[int, typer.Option(min=1, help="Show so many, the newest.")] = 20,
) -> None:
    """Show how many there are of each reason, and the newest ones."""
    from pipelines.operate.dead_letters import count_letters, newest_letters  # noqa: PLC0415

    settings, selection = bare_settings(), _selection(None if every else "open", reason, None)
    counted = count_letters(settings, selection)
    table(("reason", "fate", "records"), counted)
    newest = newest_letters(settings, selection, limit)
    table(_COLUMNS, [(_place(row), row["reason"], row["detail"], row["fate"]) for row in newest])
    say(f"{sum(count.records for count in counted):,} dead letters")


@app.command()
def show(place: Annotated[str, typer.Argument(metavar="TOPIC-PARTITION@OFFSET", help="As `list` shows it.")]) -> None:
    """Show everything that is known of one: its bytes, its headers, why it is no event, and what became of it."""
    from pipelines.operate.dead_letters import stream_letters  # noqa: PLC0415

    found = 0
    for letters in stream_letters(bare_settings(), _selection(None, None, place)):
        for number in range(len(letters)):
            facts(_shown(letters.slice(number, 1)))
            found += 1
    if not found:
        raise UsageError(f"there is no dead letter at {place}: `karmalake dead-letters list` shows the places")


@app.command()
def requeue(reason: _Reason = None, place: _Place = None) -> None:
    """Decode them again, after contract or bounds were mended; those that are events by now go into the lake.

    Each counts once by its event_id, however often it is requeued or sent again. Scores follow with the next refresh.
    Rows of a file cannot be mended here: mend the file or the mapping, and load it again.
    """
    from pipelines.operate.dead_letters import requeue as again  # noqa: PLC0415

    with progress("requeuing"):
        done = again(bare_settings(), _selection("open", reason, place))
    facts(
        [
            ("accepted", done.accepted),
            ("duplicates", done.duplicates),
            ("conflicts", done.conflicts),
            ("still no events", done.still_rejected),
        ]
    )


@app.command()
def discard(
    why: Annotated[str, typer.Option(help="Stays on the record.")], reason: _Reason = None, place: _Place = None
) -> None:
    """Give them up, with a reason, so that they are not listed any more. Their bytes stay in the lake."""
    from pipelines.operate.dead_letters import discard as give_up  # noqa: PLC0415

    say(f"{give_up(bare_settings(), _selection('open', reason, place), why):,} dead letters discarded")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="A .parquet or .ndjson file; in the latter, bytes are base64.")],
    reason: _Reason = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that were requeued or discarded.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Write them to a file, for whoever has to mend the producer."""
    from pipelines.operate.dead_letters import stream_letters  # noqa: PLC0415

    write = {".parquet": _write_parquet, ".ndjson": _write_ndjson}.get(file.suffix)
    if write is None:
        raise UsageError(f"{file}: the ending is neither .parquet nor .ndjson")
    selection = _selection(None if every else "open", reason, None)
    try:
        count = write(file, stream_letters(bare_settings(), selection))
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror or error}") from None
    say(f"{count:,} dead letters written to {file}")


def _write_parquet(file: Path, letters: "Iterator[pa.Table]") -> int:
    import pyarrow.parquet as pq  # noqa: PLC0415

    count = 0
    with pq.ParquetWriter(file, next(letters).schema) as writer:
        for some in letters:
            writer.write_table(some)
            count += len(some)
    return count


def _write_ndjson(file: Path, letters: "Iterator[pa.Table]") -> int:
    count = 0
    with file.open("w", encoding="utf-8") as written:
        for some in letters:
            written.writelines(json.dumps(row, default=_plain) + "\n" for row in some.to_pylist())
            count += len(some)
    return count


def _shown(letter: "pa.Table") -> list[tuple[str, object]]:
    """Return everything that is known of one dead letter, to be read by a person."""
    (row,) = letter.to_pylist()
    known = row["headers"] or ()
    headers = {header["key"]: _text(header["value"]) for header in known[:_MAX_HEADERS]}
    row |= {"key": _text(row["key"]), "value": _text(row["value"]), "headers": headers or None}
    if len(known) > _MAX_HEADERS:
        row["more headers"] = len(known) - _MAX_HEADERS
    row["bus_time"] = row["bus_time"] or "no valid record time"
    return [(name.replace("_", " "), value) for name, value in row.items()]


def _selection(fate: "Fate | None", reason: str | None, place: str | None) -> "Selection":
    from pipelines.contract.rejection import Reason  # noqa: PLC0415
    from pipelines.operate.dead_letters import Selection  # noqa: PLC0415

    if reason is not None and reason not in set(Reason):
        raise UsageError(f"there is no reason {reason!r}: {', '.join(Reason)}")
    return Selection(fate, reason, place)


def _place(letter: dict[str, Any]) -> str:
    return f"{letter['topic']}-{letter['topic_partition']}@{letter['offset']}"


def _text(value: bytes | None) -> str | None:
    """Return bytes as text where they are, else as Python writes them; of many the first, and how many there are."""
    if value is None:
        return None
    if len(value) > _MAX_SHOWN_BYTES:
        return f"{value[:_MAX_SHOWN_BYTES]!r}... ({len(value):,} bytes: `karmalake dead-letters export` writes all)"
    try:
        return value.decode()
    except UnicodeDecodeError:
        return repr(value)


def _plain(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
